"""Options that all benchmarks share."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from siamusic_fast.bench.data import make_shards, tracks_for
from siamusic_fast.bench.timing import Timing
from siamusic_fast.config import BACKBONES, PretrainConfig
from siamusic_fast.progress import Progress
from siamusic_fast.shards.manifest import ShardSet, find_shards

data = click.option("--data", default=None, help="Shards: a folder, or a name.  [default: clips made for it]")
backbone = click.option(
    "--backbone",
    type=click.Choice(BACKBONES),
    metavar="NAME",
    default=PretrainConfig.backbone,
    show_default=True,
    help="Encoder that trains.",
)
batch_size = click.option("--batch-size", type=int, default=64, show_default=True, help="Pairs per batch.")
windows = click.option(
    "--windows", type=int, default=5, show_default=True, help="How often each is measured, in turns."
)
window_seconds = click.option(
    "--window-seconds", type=float, default=3.0, show_default=True, help="About how long each time."
)
quick = click.option("--quick", is_flag=True, help="About a minute's look: three windows of half a second.")
out = click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to keep the result in, as JSON and as a chart.",
)


def timing(windows: int, window_seconds: float, quick: bool) -> Timing:
    """Return how long to measure."""
    return Timing(windows=3, seconds=0.5) if quick else Timing(windows=windows, seconds=window_seconds)


@contextmanager
def shards(data: str | None, data_dir: Path, batch_size: int, progress: Progress) -> Iterator[ShardSet]:
    """Give the shards that `data` means, or some that are made for the purpose and removed afterwards."""
    if data is not None:
        yield find_shards(data, data_dir)
        return
    with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as folder:
        yield make_shards(Path(folder) / "shards", tracks_for(batch_size), progress=progress)
