"""Why does my GPU wait? What each stage gives, what training takes, and the change that helps most."""

from dataclasses import dataclass
from pathlib import Path

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import CROP, dali_loader, of_recipe, stages
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.bench.train import RESIDENT, resident_step
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions, set_up
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.pipelines.torch_backend import TorchTwoViewLoader
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

_ENOUGH = 1.05
"""So many times what training takes must come, for the GPU never to wait."""
_BOUND = 1.25
"""A stage that gives less than so many times what the whole gives is what holds the whole up."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Pairs per second of everything on the way to the GPU, and what is set."""

    training: float
    """Taken by the training step from a batch that is there already."""
    loader: float
    """Given by the loader, alone on the machine."""
    crops: float
    """Given by reading and cropping alone."""
    disk: float
    """Given by the disk, if two crops of each track are read."""
    cold: bool
    """Whether the disk was measured, or the memory that held the files."""
    other_backend: float | None
    """Given by the torch backend; only measured on a CPU."""
    codec: str
    device: str
    threads: int
    cores: int


def examine(
    shard_set: ShardSet,
    *,
    recipe: str,
    backbone: str,
    batch_size: int,
    device: torch.device,
    threads: int | None = None,
    timing: Timing | None = None,
    progress: Progress = SILENT,
) -> Facts:
    """Measure what `Facts` holds. Raises `ConfigError` if the options do not fit the shards."""
    timing = timing or Timing(windows=3, seconds=2.0)
    mel = MelConfig(sample_rate=shard_set.sample_rate)
    options: LoaderOptions = {
        "mel": mel,
        "batch_size": batch_size,
        "device": device,
        "threads": threads or cores(),
        "normalisation": estimate(shard_set, mel, progress),
    }
    setup = set_up(shard_set, options, shuffle=True, labelled_only=False, smaller_batches=False)
    contenders = [stages(setup, options, [])[1], dali_loader(shard_set, options, recipe)]
    if device.type == "cpu":
        contenders.append(
            Contender(
                name="torch",
                items=batch_size,
                open=lambda: TorchTwoViewLoader(shard_set, recipe=recipe, workers=cores(), **options),
            )
        )
    contenders.append(resident_step(backbone, mel, batch_size, device))
    found = in_turns(contenders, timing, device, title="Looking at every stage", progress=progress)
    disk = limits.disk_read([Path(tar) for tar in setup.source.tars])
    return Facts(
        training=named(found, RESIDENT).median,
        loader=named(found, of_recipe(recipe)).median,
        crops=named(found, CROP).median,
        disk=disk.bytes_per_second / (4 * setup.source.span(mel)),
        cold=disk.cold,
        other_backend=named(found, "torch").median if device.type == "cpu" else None,
        codec=shard_set.codec,
        device=device.type,
        threads=options["threads"],
        cores=cores(),
    )


def advise(facts: Facts) -> str:
    """Return the one change that would help most."""
    if facts.loader >= _ENOUGH * facts.training:
        return "Nothing to change: the loader gives more than training takes."
    if facts.codec != "wav" and facts.crops < _BOUND * facts.loader:
        return (
            f"Decoding {facts.codec} holds the loader up: pack the audio with --codec wav, whose crops are "
            f"read without decoding."
        )
    if facts.disk < _BOUND * facts.loader or facts.disk < facts.training:
        return "The disk holds the loader up: put the shards on a faster one, or into memory."
    if facts.threads < facts.cores:
        return f"Only {facts.threads} of {facts.cores} cores work: give --threads {facts.cores}."
    if facts.other_backend is not None and facts.other_backend > _ENOUGH * facts.loader:
        return (
            f"Features are computed on the CPU, where the torch backend gives {facts.other_backend:,.0f} "
            f"pairs/s: use --backend torch, or a GPU."
        )
    if facts.device == "cpu":
        return "Features are computed on the CPU, which training needs as well: use a GPU."
    if facts.crops < _BOUND * facts.loader:
        return "Reading and moving crops holds the loader up: give each GPU more CPU cores."
    return "The GPU computes features and trains: use a lighter recipe or a larger batch."
