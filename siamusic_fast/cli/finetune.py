"""`siamusic-fast finetune`: a genre classifier on a pre-trained encoder."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from siamusic_fast.analysis import plots
from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.config import FinetuneConfig
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.training import finetune as training
from siamusic_fast.training.distributed import Job, device_for

DEFAULTS = FinetuneConfig()


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.labelled_data
@options.data_dir
@click.option(
    "--epochs", type=int, default=DEFAULTS.epochs, show_default=True, help="Passes over the tracks."
)
@click.option(
    "--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True, help="Crops per step."
)
@click.option("--lr", type=float, default=DEFAULTS.lr, show_default=True, help="Learning rate of Adam.")
@click.option("--freeze/--no-freeze", default=False, show_default=True, help="Leave the encoder as it is.")
@options.gpus
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
    epochs: int,
    batch_size: int,
    lr: float,
    freeze: bool,
    gpus: int | None,
    seed: int,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a genre classifier on the encoder of RUN.

    Learns from the training split and keeps the epoch with the best accuracy on the validation split.

    \b
    siamusic-fast finetune runs/20260102-030405-image-resnet50 --data fma_small
    """
    shard_set = find_shards(data, data_dir)
    config = FinetuneConfig(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    job = Job(device=device_for(gpus))
    try:
        result = training.finetune(
            config, run, shard_set, out, freeze=freeze, force=force, job=job, progress=progress(quiet)
        )
    except KeyboardInterrupt:
        note(f"Stopped. {out or run / 'finetune'} has the best classifier so far, if an epoch ended.")
        sys.exit(130)
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
    output.print(
        f"{result.epochs} epochs in {result.seconds:.0f} s; best on validation: epoch {result.best_epoch}, "
        f"accuracy {result.accuracy:.1%} over {result.tracks} tracks"
    )
    output.print(f"Classifier: {result.folder}", markup=False)
