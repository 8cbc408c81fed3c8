"""`siamusic-fast bench train`: the training step, and how well each loader feeds it."""

from pathlib import Path

import click

from siamusic_fast.bench import train as train_bench
from siamusic_fast.cli import options
from siamusic_fast.cli.bench import settings
from siamusic_fast.cli.bench.rendering import begin, show
from siamusic_fast.cli.console import progress
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.launch import device_for


@click.command()
@settings.data
@options.data_dir
@options.aug
@settings.backbone
@settings.training_batch_size
@options.gpus
@settings.windows
@settings.window_seconds
@settings.quick
@settings.out
@settings.force
@options.quiet
@options.as_json
def train(
    data: str | None,
    data_dir: Path,
    aug: str,
    backbone: str | None,
    batch_size: int | None,
    gpus: int | None,
    windows: int | None,
    window_seconds: float | None,
    quick: bool,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure pairs per second of pre-training.

    In turns: on one batch that stays on the device, which is the most that a loader could feed, with the DALI
    loader, the torch loader and that of the paper's code, each with the share of time that the
    step waits for it, the step of the paper's code on a resident batch, and products of matrices.

    \b
    siamusic-fast bench train --backbone resnet18 --batch-size 16
    """
    parse_recipe(aug)
    device = device_for(gpus)
    backbone, batch_size = settings.to_train(backbone, batch_size, device)
    begun = begin("train", out, force=force)
    with settings.shards(data, data_dir, batch_size, progress(quiet)) as shard_set:
        report = train_bench.measure(
            shard_set,
            recipe=aug,
            backbone=backbone,
            batch_size=batch_size,
            device=device,
            timing=settings.timing(windows, window_seconds, quick),
            progress=progress(quiet),
        )
    show(report, begun, quiet=quiet, as_json=as_json)
