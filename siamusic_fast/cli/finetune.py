"""`siamusic-fast finetune`: a genre classifier on a pre-trained encoder."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from siamusic_fast.analysis import plots
from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.config import CHECKPOINTS, FEATURES, HEADS, PROTOCOLS, FinetuneConfig
from siamusic_fast.processes import launch as distributed
from siamusic_fast.processes.environment import is_leader
from siamusic_fast.processes.signals import Stopped, StopSignals
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.training import finetune as training

DEFAULTS = FinetuneConfig()
F = TypeVar("F", bound=Callable[..., Any])


def _choice(flag: str, choices: tuple[str, ...], default: str, words: str) -> Callable[[F], F]:
    """Return an option that the configuration checks."""
    return click.option(flag, metavar="|".join(choices), default=default, show_default=True, help=words)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.labelled_data
@options.data_dir
@_choice(
    "--protocol",
    PROTOCOLS,
    DEFAULTS.protocol,
    "What is kept: clean, the epoch that is best on validation; paper, the last of them all.",
)
@_choice(
    "--checkpoint",
    CHECKPOINTS,
    DEFAULTS.checkpoint,
    "Which encoder of the run: the last, or the best by kNN accuracy.",
)
@click.option(
    "--from-scratch", is_flag=True, help="Random weights instead of the run's: the supervised baseline."
)
@click.option(
    "--freeze/--no-freeze",
    default=DEFAULTS.freeze,
    show_default=True,
    help="Leave the encoder as it is, and train the head alone.",
)
@_choice("--head", HEADS, DEFAULTS.head, "One layer, or two.")
@_choice("--features", FEATURES, DEFAULTS.features, "What the head reads.")
@click.option(
    "--label-fraction",
    type=float,
    default=DEFAULTS.label_fraction,
    show_default=True,
    help="Share of the labelled training tracks to use, of each class alike, such as 0.1.",
)
@click.option(
    "--aug",
    metavar="RECIPE",
    default=DEFAULTS.aug,
    show_default=True,
    help='Augmentations of the training crops that mix no tracks, such as "mask,hflip,cutout".',
)
@click.option(
    "--epochs", type=int, default=DEFAULTS.epochs, show_default=True, help="Passes over the tracks."
)
@click.option(
    "--batch-size",
    type=int,
    default=DEFAULTS.batch_size,
    show_default=True,
    help="Crops per step and process.",
)
@click.option("--lr", type=float, default=DEFAULTS.lr, show_default=True, help="Learning rate of Adam.")
@click.option(
    "--encoder-lr", type=float, default=None, help="Learning rate of the encoder.  [default: that of --lr]"
)
@click.option(
    "--layer-decay",
    type=float,
    default=DEFAULTS.layer_decay,
    show_default=True,
    help="Rate of each stage of the encoder, as a share of the rate of the stage after it.",
)
@options.backend
@options.gpus
@options.procs
@options.seed
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the classifier.  [default: RUN/finetune]",
)
@options.force
@options.quiet
@options.as_json
def finetune(
    run: Path,
    data: str,
    data_dir: Path,
    gpus: int | None,
    procs: int | None,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a genre classifier on the encoder of RUN.

    Learns from the training split. The protocol `clean` keeps the epoch with the best accuracy on the
    validation split, `paper` the last.

    \b
    siamusic-fast finetune runs/20260102-030405-image-resnet50 --data fma_small
    siamusic-fast finetune runs/first --label-fraction 0.1 --encoder-lr 1e-4 --out runs/tenth
    """
    shard_set = find_shards(data, data_dir)
    config = FinetuneConfig(**settings)
    try:
        with StopSignals() as signals, signals.at_once():
            result = distributed.launch(
                functools.partial(
                    training.finetune, config, run, shard_set, out, force=force, progress=progress(quiet)
                ),
                gpus=gpus,
                procs=procs,
            )
    except KeyboardInterrupt as stop:
        if is_leader():
            note(f"Stopped. {out or run / 'finetune'} has the classifier so far, if an epoch ended.")
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
    if not is_leader():
        return
    plots.finetuning(result.folder)
    if as_json:
        values = {**dataclasses.asdict(result), "folder": str(result.folder)}
        output.print_json(json.dumps(values), indent=None)
    elif quiet:
        output.print(str(result.folder))
    else:
        render(result)


def render(result: training.FinetuneResult) -> None:
    """Print what fine-tuning came to, its folder last."""
    kept = "best on validation" if result.protocol == "clean" else "last"
    output.print(
        f"{result.epochs} epochs in {result.seconds:.0f} s; {kept}: epoch {result.kept_epoch}, "
        f"accuracy {result.accuracy:.1%} over {result.tracks} validation tracks"
    )
    output.print(f"Classifier: {result.folder}", markup=False)
