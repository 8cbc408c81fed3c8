"""`siamusic-fast bench all`: every benchmark, into one folder."""

from pathlib import Path

import click

from siamusic_fast.bench.loader import PEERS
from siamusic_fast.bench.stages import BATCH_ON_GPU
from siamusic_fast.cli import options
from siamusic_fast.cli.bench.loader import loader
from siamusic_fast.cli.bench.shard import shard
from siamusic_fast.cli.bench.train import train
from siamusic_fast.training.distributed import device_for


@click.command(name="all")
@options.gpus
@click.option(
    "--quick/--thorough", default=True, show_default=True, help="Ten minutes on two cores, or an hour."
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/here"),
    show_default=True,
    help="Folder for the results: JSON and a chart of each.",
)
@options.quiet
@click.pass_context
def everything(context: click.Context, gpus: int | None, quick: bool, out: Path, quiet: bool) -> None:
    """Run all benchmarks on data made for them and keep the results.

    The way of the paper's code, a slow peer of the loader, is left out unless --thorough; `bench loader` has
    it.

    \b
    siamusic-fast bench all --out benchmarks/here
    """
    on_cpu = device_for(gpus).type == "cpu"
    shared = {"gpus": gpus, "out": out, "quiet": quiet}
    timing = {"windows": 5, "window_seconds": 0.6} if quick else {}
    packed = {"tracks": 200} if quick else {}
    asked = {} if on_cpu else {"batch_size": BATCH_ON_GPU}
    context.invoke(loader, peers=("torch",) if quick else PEERS, **shared, **timing, **asked)
    context.invoke(train, **shared, **timing)
    context.invoke(shard, out=out, quiet=quiet, **packed)
