"""Options that all benchmarks share."""

from pathlib import Path

import click

from siamusic_fast.bench.timing import Timing

windows = click.option(
    "--windows", type=int, default=5, show_default=True, help="How often each is measured, in turns."
)
window_seconds = click.option(
    "--window-seconds", type=float, default=3.0, show_default=True, help="About how long each time."
)
quick = click.option("--quick", is_flag=True, help="About a minute's look: two windows of half a second.")
out = click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to keep the result in, as JSON and as a chart.",
)


def timing(windows: int, window_seconds: float, quick: bool) -> Timing:
    """Return how long to measure."""
    return Timing(windows=2, seconds=0.5) if quick else Timing(windows=windows, seconds=window_seconds)
