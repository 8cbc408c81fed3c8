"""`siamusic-fast bench shard`: packing, planning and verifying."""

from pathlib import Path

import click

from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.bench import shard as shard_bench
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.bench.rendering import begin, show
from siamusic_fast.cli.console import progress

_USUAL = {"tracks": 400, "windows": 3, "planned": 1_000_000}
_QUICK = {"tracks": 100, "windows": 3, "planned": 100_000}


@click.command()
@click.argument("source", required=False)
@options.data_dir
@click.option(
    "--tracks", type=int, help=f"How many MP3s to make if there is no SOURCE.  [default: {_USUAL['tracks']}]"
)
@click.option("--procs", type=click.IntRange(min=1), help="Processes that pack.  [default: one per core]")
@click.option("--windows", type=int, help=f"How often to measure.  [default: {_USUAL['windows']}]")
@click.option("--planned", type=int, help=f"Tracks in the synthetic plan.  [default: {_USUAL['planned']:,}]")
@click.option(
    "--quick",
    is_flag=True,
    help=f"A look of a minute: {_QUICK['tracks']} MP3s and {_QUICK['planned']:,} planned tracks unless said.",
)
@settings.out
@settings.force
@options.quiet
@options.as_json
def shard(
    source: str | None,
    data_dir: Path,
    tracks: int | None,
    procs: int | None,
    windows: int | None,
    planned: int | None,
    quick: bool,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure packing, planning and verifying.

    SOURCE is what `shard` takes; without it, MP3s of 30 s are made in a temporary folder. Packing is measured
    in turns with what limits it, the CPU time of decoding and resampling, and with the script that one would
    write first; verifying with sha256sum. Opening is from the manifest to a loader that is built. The last
    line is all of it as JSON, with every window.

    \b
    siamusic-fast bench shard --quick
    siamusic-fast bench shard fma_small --procs 8
    """
    begun = begin("shard", out, force=force)
    said = {"tracks": tracks, "windows": windows, "planned": planned}
    report = shard_bench.measure(
        open_corpus(source, data_dir=data_dir) if source else None,
        procs=procs,
        progress=progress(quiet),
        **(_QUICK if quick else _USUAL) | {name: value for name, value in said.items() if value is not None},
    )
    show(report, begun, quiet=quiet, as_json=as_json)
