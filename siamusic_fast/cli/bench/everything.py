"""`siamusic-fast bench all`: every benchmark, into one folder."""

import time
from pathlib import Path

import click

from siamusic_fast.bench.loader import PEERS
from siamusic_fast.bench.stages import BATCH_ON_GPU
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.bench.loader import loader
from siamusic_fast.cli.bench.rendering import begin
from siamusic_fast.cli.bench.shard import shard
from siamusic_fast.cli.bench.train import train
from siamusic_fast.processes.launch import device_for

_HERE = Path("benchmarks/here")


@click.command(name="all")
@options.gpus
@click.option(
    "--quick/--thorough", default=True, show_default=True, help="Ten minutes on two cores, or an hour."
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for the results: JSON and a chart of each.  [default: a new one, named after the time, in "
    f"{_HERE}]",
)
@settings.force
@options.quiet
@click.pass_context
def everything(
    context: click.Context, gpus: int | None, quick: bool, out: Path | None, force: bool, quiet: bool
) -> None:
    """Run all benchmarks on data made for them and keep the results.

    The way of the paper's code, a slow peer of the loader, is left out unless --thorough; `bench loader` has
    it.

    \b
    siamusic-fast bench all
    siamusic-fast bench all --thorough --out results
    """
    out = out or _HERE / time.strftime("%Y-%m-%d-%H%M%S")
    for name in ("loader", "train", "shard"):
        begin(name, out, force=force)
    on_cpu = device_for(gpus).type == "cpu"
    shared = {"out": out, "force": force, "quiet": quiet}
    timing = {"windows": 5, "window_seconds": 0.6} if quick else {}
    packed = {"tracks": 200} if quick else {}
    asked = {} if on_cpu else {"batch_size": BATCH_ON_GPU}
    context.invoke(loader, peers=("torch",) if quick else PEERS, gpus=gpus, **shared, **timing, **asked)
    context.invoke(train, gpus=gpus, **shared, **timing)
    context.invoke(shard, **shared, **packed)
