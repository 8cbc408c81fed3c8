"""`siamusic-fast bench`: how fast it is on this machine and these shards."""

import dataclasses
import json
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.bench import loader as loader_bench
from siamusic_fast.bench import shard as shard_bench
from siamusic_fast.bench.report import Measurement, machine
from siamusic_fast.cli import options
from siamusic_fast.cli.console import console, output, progress
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.recipes import RECIPES, parse_recipe
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.shards.sources import load_corpus
from siamusic_fast.training.distributed import device_for


@click.group()
def bench() -> None:
    """Measure how fast it is, on this machine and these shards.

    \b
    siamusic-fast bench loader --data fma_small
    """


@bench.command()
@options.data
@options.data_dir
@click.option(
    "--aug",
    "recipes",
    metavar="RECIPE",
    multiple=True,
    help="Recipe to measure; may be given more than once.  [default: each]",
)
@options.backend
@click.option("--batch-size", type=int, default=64, show_default=True, help="Pairs per batch.")
@options.gpus
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads.  [default: one a core]"
)
@click.option("--windows", type=int, default=5, show_default=True, help="How often to measure.")
@click.option(
    "--window-seconds", type=float, default=3.0, show_default=True, help="About how long each time."
)
@options.quiet
@options.as_json
def loader(
    data: str,
    data_dir: Path,
    recipes: tuple[str, ...],
    backend: str,
    batch_size: int,
    gpus: int | None,
    threads: int | None,
    windows: int,
    window_seconds: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure pairs per second of the two-view loader.

    The loader is warmed up, then measured in several windows. The table shows the median and half the
    distance between the slowest and the fastest window; the last line is the same as JSON, with every window.

    \b
    siamusic-fast bench loader --data fma_small --aug image
    """
    shard_set = find_shards(data, data_dir)
    mel = MelConfig(sample_rate=shard_set.sample_rate)
    device = device_for(gpus)
    for recipe in recipes:
        parse_recipe(recipe)
    found = [
        loader_bench.measure(
            shard_set,
            recipe=recipe,
            backend=backend,
            mel=mel,
            batch_size=batch_size,
            device=device,
            threads=threads,
            windows=windows,
            seconds=window_seconds,
            progress=progress(quiet),
        )
        for recipe in recipes or RECIPES
    ]
    settings = {"shards": shard_set.source, "batch_size": batch_size, "device": device.type}
    if not (as_json or quiet):
        console.print(_table(found, f"Loader on {device.type}, batches of {batch_size}"))
    document = {"machine": machine(), "settings": settings | {"mel": dataclasses.asdict(mel)}}
    output.print_json(json.dumps(document | {"results": [one.as_json() for one in found]}), indent=None)


@bench.command()
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
@options.quiet
@options.as_json
def shard(
    source: str | None,
    data_dir: Path,
    tracks: int,
    workers: int | None,
    windows: int,
    planned: int,
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
    found = shard_bench.measure(
        load_corpus(source, data_dir) if source else None,
        tracks=tracks,
        workers=workers,
        windows=windows,
        planned=planned,
        progress=progress(quiet),
    )
    if not (as_json or quiet):
        console.print(_table(list(found.measurements), f"Packing {found.tracks:,} tracks to wav"))
        for name, ratio in found.ratios.items():
            console.print(f"{name}: {ratio:.2f}")
        console.print(f"obvious script: {found.script}")
    document = {
        "machine": machine(),
        "settings": {"source": source or "synthetic", "tracks": found.tracks, "script": found.script},
        "results": [one.as_json() for one in found.measurements],
        "ratios": found.ratios,
    }
    output.print_json(json.dumps(document), indent=None)


def _table(found: list[Measurement], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("spread", justify="right")
    table.add_column("unit")
    for one in found:
        table.add_row(
            one.name,
            f"{one.median:,.3g}" if one.median < 100 else f"{one.median:,.0f}",
            f"± {one.spread:.0%}",
            one.unit,
        )
    return table
