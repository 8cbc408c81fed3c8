"""How benchmarks are shown: tables, one line of JSON, and a folder with both and a chart."""

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from siamusic_fast.bench import chart
from siamusic_fast.bench.report import Measurement, Ratio, Report, added_ms, number
from siamusic_fast.cli.console import console, note, output
from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write

_HEADINGS = ("what", "median", "spread", "unit", "adds ms", "CPU ms each", "limit", "target", "verdict")
_WORDS = (0, 3, 8)
"""Columns of the headings that hold words."""
_PAPER_WIDTH = 120
"""Characters in a line where there is no terminal to say."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A benchmark that has begun."""

    started: float
    """By `time.perf_counter`."""
    document: Path | None
    """Where its result is kept as JSON, if it is; the chart beside it has the same name."""

    @property
    def chart(self) -> Path | None:
        """Where the chart is kept."""
        return self.document and self.document.with_suffix(".png")


def begin(name: str, out: Path | None, *, force: bool) -> Begun:
    """Make the folder `out` for the results of `name`, so that what is measured can be kept.

    Raises `DataError` if it has such results and `force` is not given, `OSError` if nothing can be written.
    """
    begun = Begun(started=time.perf_counter(), document=out and out / f"{name}.json")
    if out is not None:
        for path in (begun.document, begun.chart):
            if path is not None and path.exists() and not force:
                raise DataError(
                    f"{path} exists: keep the result elsewhere with --out, or replace it with --force."
                )
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    return begun


def show(report: Report, begun: Begun, *, quiet: bool, as_json: bool) -> None:
    """Print `report`, then write it and its chart if they are to be kept."""
    report = dataclasses.replace(report, seconds=time.perf_counter() - begun.started)
    if not (as_json or quiet):
        width = None if console.is_terminal else _PAPER_WIDTH
        console.print(_measurements(report), width=width)
        if report.ratios:
            console.print(_ratios(report), width=width)
        for line in report.notes:
            note(line)
    document = json.dumps(report.as_json())
    output.print_json(document, indent=None)
    if begun.document and begun.chart:
        with atomic_write(begun.document) as file:
            file.write(document.encode() + b"\n")
        chart.draw(report, begun.chart)
        if not quiet:
            note(f"Kept: {begun.document} and {begun.chart.name}")


def _measurements(report: Report) -> Table:
    rows = [
        (
            f"{one.name} ({one.setting})" if one.setting else one.name,
            number(one.median),
            f"± {one.spread:.0%}",
            one.unit,
            added_by(one, report),
            "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}",
            number(report.limits[one.name]) if one.name in report.limits else "",
            target_of(one),
            one.verdict,
        )
        for one in report.measurements
    ]
    table = Table(title=report.title, title_justify="left")
    used = [column for column in range(len(_HEADINGS)) if any(row[column] for row in rows)]
    for column in used:
        table.add_column(_HEADINGS[column], justify="left" if column in _WORDS else "right")
    for row in rows:
        table.add_row(*(row[column] for column in used))
    return table


def _ratios(report: Report) -> Table:
    table = Table(title="In turns", title_justify="left")
    table.add_column("ratio")
    for heading in ("median", "spread", "target"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for one in report.ratios:
        target = target_of(one)
        table.add_row(one.name, f"{one.median:.2f}", f"± {one.spread:.0%}", target, one.verdict)
    return table


def added_by(one: Measurement, report: Report) -> str:
    """Return the milliseconds of an item that a stage adds to those of the stage that it extends."""
    if one.name not in report.befores:
        return ""
    return f"{added_ms(report.measurements, one.name, report.befores):.2f}"


def target_of(one: Measurement | Ratio) -> str:
    """Return what is asked of a measurement or a ratio, if anything is."""
    if one.target is None:
        return ""
    return f"{'at most ' if one.at_most else ''}{number(one.target)}"
