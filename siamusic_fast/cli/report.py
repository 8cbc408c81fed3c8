"""`siamusic-fast report`: a page about runs."""

import json
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress, show_facts, stopping
from siamusic_fast.config import FinetuneConfig
from siamusic_fast.shards.manifest import find_shards


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.data_of_run
@options.data_dir
@options.cache
@options.settings(FinetuneConfig, "checkpoint", "backend", filled=True)
@options.device
@options.out("RUN/report.html, or report.html for several runs")
@options.force
@options.quiet
@options.as_json
def report(
    runs: tuple[Path, ...],
    data: str | None,
    data_dir: Path,
    device: Any,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write an HTML page about RUN that needs no network.

    It has the settings, the curves, the scores with intervals beside chance and baselines, views that can be
    heard, and a map of the test tracks by their features: hovering names a track, a click plays it and lists
    the nearest ones. With several runs it has what differs in their settings, their curves over one another,
    and their scores in one table.

    \b
    siamusic-fast report runs/first
    siamusic-fast report runs/first runs/second --out comparison.html
    """
    from siamusic_fast.analysis.report import page
    from siamusic_fast.processes.world import World

    with stopping(lambda: ("Stopped. No page was written.",)):
        result = page.report(
            runs,
            find_shards(data, data_dir) if data else None,
            world=World(device=device),
            progress=progress(quiet),
            **settings,
        )
    if as_json:
        values = {"page": str(result.path), "bytes": result.size, "tracks": result.tracks}
        output.print_json(json.dumps(values | {"notes": result.notes}), indent=None)
    elif quiet:
        output.print(str(result.path), markup=False)
    else:
        for words in result.notes:
            note(words)
        facts = {
            "page": f"{result.path}, {result.size / 1e6:.1f} MB",
            "open": f"{result.path.resolve().as_uri()}",
        }
        show_facts(facts.items())
