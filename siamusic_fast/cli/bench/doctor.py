"""`siamusic-fast bench doctor`: why the GPU waits, on one screen."""

import dataclasses
import json
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.bench.doctor import Facts, advise, examine
from siamusic_fast.bench.report import number
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.console import output, progress
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.training.distributed import device_for


@click.command()
@settings.data
@options.data_dir
@options.aug
@settings.backbone
@settings.batch_size
@options.gpus
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads.  [default: one a core]"
)
@options.quiet
@options.as_json
def doctor(
    data: str | None,
    data_dir: Path,
    aug: str,
    backbone: str,
    batch_size: int,
    gpus: int | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say why training waits for data, and the one change that would help most.

    \b
    siamusic-fast bench doctor
    siamusic-fast bench doctor --data fma_medium --aug audio --backbone resnet18
    """
    parse_recipe(aug)
    with settings.shards(data, data_dir, batch_size, progress(quiet)) as shard_set:
        facts = examine(
            shard_set,
            recipe=aug,
            backbone=backbone,
            batch_size=batch_size,
            device=device_for(gpus),
            threads=threads,
            progress=progress(quiet),
        )
    if as_json:
        values = {**dataclasses.asdict(facts), "advice": advise(facts)}
        output.print_json(json.dumps(values), indent=None)
        return
    if not quiet:
        output.print(_table(facts))
    output.print(advise(facts), markup=False)


def _table(facts: Facts) -> Table:
    table = Table()
    table.add_column("what")
    table.add_column("pairs/s", justify="right")
    table.add_column("")
    alone = f"fed {min(1.0, facts.loader / facts.training):.0%} of the time by a loader alone on the machine"
    table.add_row(
        "training takes",
        number(facts.training),
        alone,
    )
    together = min(1.0, facts.together / facts.training)
    table.add_row("both together", number(facts.together), f"{together:.0%} of what training takes")
    table.add_row("the loader gives", number(facts.loader), f"on {facts.device}")
    table.add_row("reading and cropping", number(facts.crops), f"{facts.codec} shards")
    table.add_row("the disk", number(facts.disk), "cold" if facts.cold else "from memory: not dropped")
    if facts.other_backend is not None:
        table.add_row("the torch backend", number(facts.other_backend), "--backend torch")
    table.add_row("CPU threads", str(facts.threads), f"of {facts.cores} cores")
    return table
