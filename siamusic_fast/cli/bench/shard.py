"""`siamusic-fast bench shard`: packing, planning and verifying."""

from pathlib import Path

import click

from siamusic_fast.bench import shard as shard_bench
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.bench.rendering import show
from siamusic_fast.cli.console import progress
from siamusic_fast.shards.sources import load_corpus


@click.command()
@click.argument("source", required=False)
@options.data_dir
@click.option(
    "--tracks", type=int, default=400, show_default=True, help="How many MP3s to make if there is no SOURCE."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes that pack.  [default: one per core]")
@click.option("--windows", type=int, default=3, show_default=True, help="How often to measure.")
@click.option(
    "--planned", type=int, default=1_000_000, show_default=True, help="Tracks in the synthetic plan."
)
@settings.out
@options.quiet
@options.as_json
def shard(
    source: str | None,
    data_dir: Path,
    tracks: int,
    workers: int | None,
    windows: int,
    planned: int,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure packing, planning and verifying.

    SOURCE is what `shard` takes; without it, MP3s of 30 s are made in a temporary folder. Packing is measured
    in turns with what limits it, the CPU time of decoding and resampling, and with the script that one would
    write first; verifying with sha256sum. Opening is from the manifest to a loader that is built. The last
    line is all of it as JSON, with every window.

    \b
    siamusic-fast bench shard
    siamusic-fast bench shard fma_small --workers 8
    """
    report = shard_bench.measure(
        load_corpus(source, data_dir) if source else None,
        tracks=tracks,
        workers=workers,
        windows=windows,
        planned=planned,
        progress=progress(quiet),
    )
    show(report, "shard", out=out, quiet=quiet, as_json=as_json)
