"""How the result of a benchmark is shown and kept: a table, one line of JSON, and a chart."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

from rich import box
from rich.table import Table

from siamusic_fast.bench import chart
from siamusic_fast.bench.report import Measurement, Report, added_ms, number
from siamusic_fast.cli.console import console, note, output
from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write

_HEADINGS = ("what", "median", "spread", "unit", "adds ms", "CPU ms", "limit")


class Result:
    """The result of a benchmark that has begun."""

    def __init__(self, name: str, out: Path | None, *, force: bool, quiet: bool, as_json: bool) -> None:
        """Make the folder `out`, in which `name`.json and `name`.png are kept if it is given.

        Raises `DataError` if it has such a result and `force` is not given, `OSError` if it is not writable.
        """
        self._started = time.perf_counter()
        self._quiet, self._with_tables = quiet, not (quiet or as_json)
        self._document = out and out / f"{name}.json"
        if out is None or self._document is None:
            return
        for path in (self._document, self._document.with_suffix(".png")):
            if path.exists() and not force:
                raise DataError(
                    f"{path} exists: keep the result elsewhere with --out, or replace it with --force."
                )
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass

    def show(self, report: Report) -> None:
        """Print `report`, then write it and its chart if they are to be kept."""
        report = dataclasses.replace(report, seconds=time.perf_counter() - self._started)
        if self._with_tables:
            console.print(_measurements(report))
            for ratio in report.ratios:
                note(f"{ratio.name}: {ratio.median:.2f} ± {ratio.spread:.0%}")
            for line in report.notes:
                note(line)
        document = json.dumps(report.as_json())
        output.print_json(document, indent=None)
        if self._document is not None:
            with atomic_write(self._document) as file:
                file.write(document.encode() + b"\n")
            chart.draw(report, self._document.with_suffix(".png"))
            if not self._quiet:
                note(f"Kept: {self._document} and its chart, {self._document.stem}.png")


def _measurements(report: Report) -> Table:
    table = Table(title=report.title, title_justify="left", box=box.SIMPLE)
    rows = [_row(one, report) for one in report.measurements]
    used = [column for column in range(len(_HEADINGS)) if any(row[column] for row in rows)]
    for column in used:
        table.add_column(_HEADINGS[column], justify="left" if column in (0, 3) else "right")
    for row in rows:
        table.add_row(*(row[column] for column in used))
    return table


def _row(one: Measurement, report: Report) -> tuple[str, ...]:
    return (
        f"{one.name} ({one.setting})" if one.setting else one.name,
        number(one.median),
        f"± {one.spread:.0%}",
        one.unit,
        f"{added_ms(report.measurements, one):.2f}" if one.extends else "",
        "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}",
        "" if one.limit is None else number(one.limit),
    )
