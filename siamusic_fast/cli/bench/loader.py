"""`siamusic-fast bench loader`: pairs per second, stage by stage and beside peers."""

from pathlib import Path

import click

from siamusic_fast.bench import loader as loader_bench
from siamusic_fast.bench import scaling as scaling_bench
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.bench.rendering import begin, show
from siamusic_fast.cli.console import progress
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.launch import device_for

_SMALL = {"most_tracks": 25_000, "most_shards": 100, "long_run": 1_000}
"""How far --scaling goes for a quick look."""


@click.command()
@settings.data
@options.data_dir
@click.option(
    "--aug",
    "recipes",
    metavar="RECIPE",
    multiple=True,
    default=("image", "audio"),
    show_default=True,
    help="Recipe to measure; may be given more than once.",
)
@click.option(
    "--peer",
    "peers",
    type=click.Choice([*loader_bench.PEERS, "none"]),
    multiple=True,
    help="What to compare with: the torch backend; the way of the paper's code.  "
    "[default: both; with --quick torch]",
)
@settings.batch_size
@options.gpus
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads of DALI.  [default: one a core]"
)
@click.option(
    "--scaling",
    is_flag=True,
    help="Instead: the first --aug with 1 to all threads, several batch sizes, up to 1,000,000 tracks.",
)
@settings.windows
@settings.window_seconds
@settings.quick
@settings.out
@settings.force
@options.quiet
@options.as_json
def loader(
    data: str | None,
    data_dir: Path,
    recipes: tuple[str, ...],
    peers: tuple[str, ...],
    batch_size: int,
    gpus: int | None,
    threads: int | None,
    scaling: bool,
    windows: int | None,
    window_seconds: float | None,
    quick: bool,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure pairs per second of the two-view loader.

    First the stages of the DALI loader, one more at a time: the plan, reading, handing over, features, each
    recipe. Then each recipe in turns with its peers on the same tracks, after a check that they make the
    same. A ratio is of windows measured one after the other; if its target, or 1, lies within the spread, it
    is not certain.

    \b
    siamusic-fast bench loader
    siamusic-fast bench loader --data fma_small --aug image --peer none
    siamusic-fast bench loader --scaling
    """
    for recipe in recipes:
        parse_recipe(recipe)
    if scaling and (threads or peers):
        raise ConfigError("--scaling measures 1 to all threads and no peer: leave --threads and --peer out.")
    peers = peers or (("torch",) if quick else loader_bench.PEERS)
    device = device_for(gpus)
    timing = settings.timing(windows, window_seconds, quick)
    begun = begin("scaling" if scaling else "loader", out, force=force)
    with settings.shards(data, data_dir, batch_size, progress(quiet)) as shard_set:
        if scaling:
            report = scaling_bench.measure(
                shard_set,
                recipe=recipes[0],
                batch_size=batch_size,
                device=device,
                timing=timing,
                progress=progress(quiet),
                **(_SMALL if quick else {}),
            )
            show(report, begun, quiet=quiet, as_json=as_json)
            return
        report = loader_bench.measure(
            shard_set,
            recipes=recipes,
            peers=[peer for peer in peers if peer != "none"],
            batch_size=batch_size,
            device=device,
            threads=threads,
            timing=timing,
            progress=progress(quiet),
        )
    show(report, begun, quiet=quiet, as_json=as_json)
