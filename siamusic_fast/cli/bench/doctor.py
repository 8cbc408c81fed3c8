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
from siamusic_fast.processes.launch import device_for


@click.command()
@settings.data
@options.data_dir
@options.aug
@settings.backbone
@settings.training_batch_size
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=None,
    help="GPUs that share the cores; one is measured, with its share. 0 is the CPU.  [default: one, if any]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads.  [default: one a core]"
)
@options.quiet
@options.as_json
def doctor(
    data: str | None,
    data_dir: Path,
    aug: str,
    backbone: str | None,
    batch_size: int | None,
    gpus: int | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say whether training waits for data, why, and the one change that would help most.

    It takes about a minute. A rate that the advice promises is what the other stages would still allow.

    \b
    siamusic-fast bench doctor
    siamusic-fast bench doctor --data fma_medium --aug audio --backbone resnet18
    """
    parse_recipe(aug)
    device = device_for(None if gpus is None else min(gpus, 1))
    backbone, batch_size = settings.to_train(backbone, batch_size, device)
    with settings.shards(data, data_dir, batch_size, progress(quiet)) as shard_set:
        facts = examine(
            shard_set,
            recipe=aug,
            backbone=backbone,
            batch_size=batch_size,
            device=device,
            gpus=gpus or 1,
            threads=threads,
            progress=progress(quiet),
        )
    if as_json:
        values = {
            **dataclasses.asdict(facts),
            "backbone": backbone,
            "batch_size": batch_size,
            "advice": advise(facts),
        }
        output.print_json(json.dumps(values), indent=None)
        return
    if not quiet:
        output.print(_table(facts, f"{backbone}, batches of {batch_size}, recipe {aug}"))
    output.print(advise(facts), markup=False)


def _table(facts: Facts, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("pairs/s", justify="right")
    table.add_column("")
    table.add_row("training takes", number(facts.training), "of a batch that is there already")
    fed = f"{facts.fed:.0%} ± {facts.spread:.0%} of that; waits {facts.waiting:.0%} of the time"
    table.add_row("with the loader", number(facts.together), fed)
    table.add_row("the loader alone", number(facts.loader), f"on {facts.device}")
    table.add_row("features alone", number(facts.features), "the loader without augmentations")
    on_gpu = " and copied to the GPU" if facts.device == "cuda" else ""
    table.add_row("handing over", number(facts.handed_over), f"planned, read, given to DALI{on_gpu}")
    table.add_row("reading", number(facts.read), f"planned and read, {facts.codec} shards")
    table.add_row("planning", number(facts.plan), "in one thread")
    table.add_row("the loader's CPU time", number(facts.by_cpu), "if all its threads worked all the time")
    table.add_row("the disk", number(facts.disk), "cold" if facts.cold else "from memory: not dropped")
    if facts.other_backend is not None:
        table.add_row("the torch backend", number(facts.other_backend), "--backend torch")
    table.add_row("CPU threads", str(facts.threads), f"of {facts.cores} cores")
    return table
