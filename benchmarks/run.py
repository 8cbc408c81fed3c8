"""Runs every benchmark on data made for it and keeps the results: `make bench`.

python -m benchmarks.run [--thorough] [--device cpu|cuda] [--out FOLDER] [NAME ...]    NAME is one of loader,
train, shard, cluster and scaling; by default, all are run. --thorough takes an hour instead of ten minutes.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from benchmarks import cluster, loader, result, scaling, shard, train
from benchmarks.result import Result
from siamusic_fast.bench.corpus import make_shards, tracks_for
from siamusic_fast.bench.stages import Setup, prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.cli.console import progress
from siamusic_fast.processes.launch import device_for

HERE = Path("benchmarks/here")
NAMES = ("loader", "train", "shard", "cluster", "scaling")
_QUICK = Timing(windows=5, seconds=0.6)
_SMALL = {"max_tracks": 25_000, "max_shards": 100, "long_run": 1_000}
"""How far the quick form of scaling goes."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--thorough", is_flag=True)
@click.option("--device", default=None)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=None)
def main(names: tuple[str, ...], thorough: bool, device: str | None, out: Path | None) -> None:
    """Measure this machine."""
    folder = out or HERE / time.strftime("%Y-%m-%d-%H%M%S")
    where = device_for(None) if device is None else torch.device(device)
    for name, measure in benchmarks(where, thorough=thorough).items():
        if not names or name in names:
            started = time.perf_counter()
            result.keep(measure(), folder / f"{name}.json", started)


def benchmarks(device: torch.device, *, thorough: bool) -> dict[str, Callable[[], Result]]:
    """Return what measures each of the benchmarks; the paper's loader, which is slow, only if `thorough`."""
    timing, shown = Timing() if thorough else _QUICK, progress(quiet=False)
    on_cpu = device.type == "cpu"
    batch_size = loader.BATCH_ON_CPU if on_cpu else loader.BATCH_ON_GPU
    backbone, training_batch_size = ("resnet18", 16) if on_cpu else ("resnet50", 64)

    def with_setup(measure: Callable[[Setup], Result], batch_size: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            made = make_shards(Path(folder), tracks_for(batch_size), progress=shown)
            return measure(prepare(made, batch_size=batch_size, device=device, progress=shown))

    return {
        "loader": lambda: with_setup(
            lambda setup: loader.measure(
                setup, ("image", "audio"), timing, with_paper=thorough, progress=shown
            ),
            batch_size,
        ),
        "train": lambda: with_setup(
            lambda setup: train.measure(setup, "image", backbone, timing, shown), training_batch_size
        ),
        "shard": lambda: shard.measure(tracks=400 if thorough else 200, progress=shown),
        "cluster": lambda: cluster.measure(
            tracks=400 if thorough else 100, windows=9 if thorough else 5, progress=shown
        ),
        "scaling": lambda: with_setup(
            lambda setup: scaling.measure(
                setup, "image", timing, progress=shown, **({} if thorough else _SMALL)
            ),
            batch_size,
        ),
    }


if __name__ == "__main__":
    main()
