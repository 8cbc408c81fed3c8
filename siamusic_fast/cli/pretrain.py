"""`siamusic-fast pretrain`: an encoder from music without labels."""

import dataclasses
import functools
import json
import sys
from datetime import datetime
from pathlib import Path

import click
from click.core import ParameterSource

from siamusic_fast.analysis import plots
from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.config import BACKBONES, MelConfig, PretrainConfig
from siamusic_fast.pipelines.recipes import file_name, parse_recipe
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.training import distributed
from siamusic_fast.training import pretrain as training

DEFAULTS = PretrainConfig()
_FREE_ON_RESUME = {"resume", "data", "data_dir", "gpus", "workers", "quiet", "as_json"}


@click.command()
@options.data
@options.data_dir
@options.aug
@options.backend
@click.option(
    "--backbone",
    metavar="|".join(BACKBONES),
    default=DEFAULTS.backbone,
    show_default=True,
    help="Encoder.",
)
@click.option(
    "--epochs", type=int, default=DEFAULTS.epochs, show_default=True, help="Passes over the tracks."
)
@click.option(
    "--batch-size",
    type=int,
    default=DEFAULTS.batch_size,
    show_default=True,
    help="Pairs per step and process.",
)
@click.option("--lr", type=float, default=DEFAULTS.lr, show_default=True, help="Learning rate of Adam.")
@click.option(
    "--seconds", type=float, default=DEFAULTS.mel.seconds, show_default=True, help="Length of a crop."
)
@click.option(
    "--splits",
    default=",".join(DEFAULTS.splits),
    show_default=True,
    help="What to learn from, such as training,validation.",
)
@click.option("--all-splits", is_flag=True, help="Learn from every track, those of the test split included.")
@options.gpus
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Processes that train together on the CPU; each GPU has one anyway.  [default: 1]",
)
@options.seed
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the run.  [default: runs/DATE-AUG-BACKBONE]",
)
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(path_type=Path),
    default=None,
    help="Go on with a run that was stopped, after its last whole epoch, as it was configured.",
)
@options.force
@options.quiet
@options.as_json
@click.pass_context
def pretrain(
    context: click.Context,
    data: str,
    data_dir: Path,
    aug: str,
    backend: str,
    backbone: str,
    epochs: int,
    batch_size: int,
    lr: float,
    seconds: float,
    splits: str,
    all_splits: bool,
    gpus: int | None,
    workers: int | None,
    seed: int,
    out: Path | None,
    resume: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pre-train an encoder with SimSiam.

    The folder of the run gets config.json, checkpoint.pt after each epoch, metrics.jsonl with TensorBoard's
    event file, and plots.

    \b
    siamusic-fast pretrain --gpus 2 --aug image
    siamusic-fast pretrain --data fma_small --gpus 0 --backbone resnet18 --epochs 5
    siamusic-fast pretrain --resume runs/20260102-030405-image-resnet50
    """
    if resume is not None:
        _refuse_settings(context)
        config, packed = training.load_run(resume)
        given = context.get_parameter_source("data") is ParameterSource.COMMANDLINE
        shard_set = find_shards(data if given else packed, data_dir)
    else:
        shard_set = find_shards(data, data_dir)
        parse_recipe(aug)
        config = PretrainConfig(
            mel=MelConfig(sample_rate=shard_set.sample_rate, seconds=seconds),
            recipe=aug,
            backend=backend,
            backbone=backbone,
            splits=tuple(shard_set.splits) if all_splits else tuple(splits.split(",")),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
        )
    run = resume or out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{file_name(aug)}-{backbone}"
    if not quiet and distributed.is_leader():
        note(f"Run: {run}")
    try:
        result = distributed.launch(
            functools.partial(
                training.pretrain,
                config,
                shard_set,
                run,
                resume=resume is not None,
                force=force,
                progress=progress(quiet),
            ),
            gpus=gpus,
            workers=workers,
        )
    except KeyboardInterrupt:
        _say_how_to_go_on(run)
        sys.exit(130)
    if not distributed.is_leader():
        return
    plots.pretraining(run)
    if as_json:
        values = {**dataclasses.asdict(result), "run": str(run)}
        output.print_json(json.dumps(values), indent=None)
    elif quiet:
        output.print(str(run))
    else:
        render(result)


def render(result: training.PretrainResult) -> None:
    """Print what a run came to, its folder last."""
    output.print(
        f"{result.epochs} epochs, {result.steps} steps in {result.seconds:.0f} s: loss {result.loss:.3f}, "
        f"collapse measure {result.collapse:.4f} (healthy: {training.HEALTHY_COLLAPSE:.4f}, collapsed: 0), "
        f"{result.pairs_per_second:.1f} pairs/s, {result.waiting:.0%} of the time waiting for data"
    )
    output.print(f"Run: {result.run}", markup=False)


def _refuse_settings(context: click.Context) -> None:
    """Raise UsageError if a setting is given beside --resume, which takes them all from the run."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in _FREE_ON_RESUME and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"--resume goes on with the settings of the run: leave out {', '.join(given)}."
        )


def _say_how_to_go_on(run: Path) -> None:
    if not distributed.is_leader():
        return
    if (run / training.CHECKPOINT).is_file():
        note(f"Stopped. {run} has its last whole epoch; go on with: siamusic-fast pretrain --resume {run}")
    else:
        note(f"Stopped before the first epoch ended: {run} has no checkpoint yet.")
