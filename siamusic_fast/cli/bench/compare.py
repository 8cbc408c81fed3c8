"""`siamusic-fast bench compare`: two results side by side."""

import json
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.bench.compare import Change, changes, differences
from siamusic_fast.bench.report import Report, number, read_report
from siamusic_fast.cli import options
from siamusic_fast.cli.console import output
from siamusic_fast.errors import DataError


@click.command()
@click.argument("before", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, dir_okay=False))
@options.as_json
def compare(before: Path, after: Path, as_json: bool) -> None:
    """Compare two results of the same benchmark, BEFORE and AFTER.

    What differs by less than the spreads of both together is no difference, and fewer than three windows say
    nothing. In which settings, and in what of the machine, the two differ is said first.

    \b
    siamusic-fast bench compare before/loader.json after/loader.json
    """
    earlier, later = _read(before), _read(after)
    found, different = changes(earlier, later), differences(earlier, later)
    if as_json:
        values = {"differences": different, "changes": [change.as_json() for change in found]}
        output.print_json(json.dumps(values), indent=None)
        return
    for line in different:
        output.print(f"Not the same: {line}", markup=False)
    output.print(_table(found))


def _read(path: Path) -> Report:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no JSON ({error}): give what `siamusic-fast bench --out` kept."
        ) from error
    return read_report(document, str(path))


def _table(found: list[Change]) -> Table:
    table = Table()
    table.add_column("what")
    for heading in ("before", "after", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for one in found:
        table.add_row(
            f"{one.name} ({one.note})" if one.note else one.name,
            number(one.before),
            f"{number(one.after)} {one.unit}",
            f"{one.ratio:.2f}",
            one.verdict,
        )
    return table
