"""Why does my GPU wait? What each stage gives, what training takes, and the change that helps most."""

from dataclasses import dataclass
from pathlib import Path

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.loader import torch_loader
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import crop_stage, dali_loader, prepare
from siamusic_fast.bench.timing import Timing, in_turns
from siamusic_fast.bench.train import fed_step, new_step, resident_step
from siamusic_fast.pipelines.options import Setup
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

_TOGETHER = "loader and training together"
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
    together: float
    """Trained on, when the loader feeds the step and both share the machine."""
    crops: float
    """Given by reading and cropping alone."""
    disk: float
    """Given by the disk, if of each track one crop is read, or all of it where it must be decoded."""
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
    setup, options = prepare(
        shard_set, batch_size=batch_size, device=device, threads=threads, progress=progress
    )
    loader = dali_loader(shard_set, options, recipe)
    crops = crop_stage(setup, options)
    resident = resident_step(backbone, setup.mel, batch_size, device)
    fed = fed_step(_TOGETHER, loader, new_step(backbone, setup.mel, batch_size, device), device)
    contenders = [crops, loader, resident, fed]
    other = torch_loader(shard_set, options, recipe, workers=cores(), per_batch=False)
    if device.type == "cpu":
        contenders.append(other)
    found = in_turns(contenders, timing, device, title="Looking at every stage", progress=progress)
    disk = limits.disk_read([Path(tar) for tar in setup.source.tars])
    return Facts(
        training=named(found, resident.name).median,
        loader=named(found, loader.name).median,
        together=named(found, fed.name).median,
        crops=named(found, crops.name).median,
        disk=disk.bytes_per_second / _bytes_read(setup),
        cold=disk.cold,
        other_backend=named(found, other.name).median if device.type == "cpu" else None,
        codec=shard_set.codec,
        device=device.type,
        threads=options["threads"],
        cores=cores(),
    )


def _bytes_read(setup: Setup) -> float:
    """Return what is read of a track: one crop, or all of it where it must be decoded."""
    source = setup.source
    if source.mapped:
        return 2 * source.span(setup.mel)
    return sum(shard.bytes for shard in source.shards) / source.tracks


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
        return (
            f"Only {facts.threads} of {facts.cores} cores made batches here: leave --threads out, as "
            f"training uses its share of all; a loader of your own takes threads={facts.cores}."
        )
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
