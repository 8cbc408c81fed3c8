"""Options that all benchmarks share."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from siamusic_fast.bench.data import make_shards, tracks_for
from siamusic_fast.bench.timing import Timing
from siamusic_fast.config import BACKBONES, PretrainConfig
from siamusic_fast.progress import Progress
from siamusic_fast.shards.manifest import ShardSet, find_shards

_SMALL = ("resnet18", 16)
"""Backbone and batch size of which a CPU trains some steps in a second."""
_QUICK = Timing(windows=5, seconds=0.5)

data = click.option("--data", default=None, help="Shards: a folder, or a name.  [default: clips made for it]")
backbone = click.option(
    "--backbone",
    type=click.Choice(BACKBONES),
    metavar="NAME",
    default=None,
    help=f"Encoder that trains.  [default: {PretrainConfig.backbone}; on a CPU {_SMALL[0]}]",
)
training_batch_size = click.option(
    "--batch-size",
    type=int,
    default=None,
    help=f"Pairs per batch.  [default: {PretrainConfig.batch_size}; on a CPU {_SMALL[1]}]",
)
batch_size = click.option("--batch-size", type=int, default=64, show_default=True, help="Pairs per batch.")
windows = click.option(
    "--windows",
    type=int,
    default=None,
    help=f"How often each is measured, in turns.  [default: {Timing.windows}]",
)
window_seconds = click.option(
    "--window-seconds",
    type=float,
    default=None,
    help=f"About how long each time.  [default: {Timing.seconds}]",
)
quick = click.option(
    "--quick", is_flag=True, help="A look of a minute or two: five windows of half a second unless said."
)
out = click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to keep the result in, as JSON and as a chart.",
)
force = click.option("--force", is_flag=True, help="Replace an earlier result in the folder of --out.")


def timing(windows: int | None, window_seconds: float | None, quick: bool) -> Timing:
    """Return how long to measure; `None` is what is usual, or what is for a quick look."""
    usual = _QUICK if quick else Timing()
    return Timing(
        windows=usual.windows if windows is None else windows,
        seconds=usual.seconds if window_seconds is None else window_seconds,
    )


def to_train(backbone: str | None, batch_size: int | None, device: torch.device) -> tuple[str, int]:
    """Return the backbone and the batch size to train with on `device`; `None` is its default."""
    usual = _SMALL if device.type == "cpu" else (PretrainConfig.backbone, PretrainConfig.batch_size)
    return backbone or usual[0], usual[1] if batch_size is None else batch_size


@contextmanager
def shards(data: str | None, data_dir: Path, batch_size: int, progress: Progress) -> Iterator[ShardSet]:
    """Give the shards that `data` means, or some that are made for the purpose and removed afterwards."""
    if data is not None:
        yield find_shards(data, data_dir)
        return
    with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as folder:
        yield make_shards(Path(folder) / "shards", tracks_for(batch_size), progress=progress)
