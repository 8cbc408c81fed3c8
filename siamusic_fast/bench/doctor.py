"""Why does my GPU wait? What each stage gives, what training takes, and the change that helps most."""

from dataclasses import dataclass
from pathlib import Path

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.loader import torch_loader
from siamusic_fast.bench.report import Measurement, Ratio, named
from siamusic_fast.bench.stages import HOLDS, bytes_read, copy_stage, crop_stage, dali_loader, prepare
from siamusic_fast.bench.timing import Timing, in_turns, waiting_of
from siamusic_fast.bench.train import fed_step, new_step, resident_step
from siamusic_fast.config import PretrainConfig
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

_TOGETHER = "loader and training together"
_FED = 0.95
"""Training that keeps so much of the rate that it has alone is fed."""
_WAITING = 0.05
"""Of the time: who waits less does not wait."""
_MORE = 1.05
"""Of two rates, the one that is so many times the other is higher."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Pairs per second of everything on the way to the GPU, and what is set."""

    training: float
    """Taken by the training step from a batch that is there already."""
    loader: float
    """Given by the loader, alone on the machine."""
    together: float
    """Trained on, when the loader feeds the step and both share the machine."""
    fed: float
    """`together` over `training`, measured in turns."""
    spread: float
    """How far the windows of `fed` are from their median, as a share of it."""
    waiting: float
    """Share of the time, 0 to 1, that the step waits for batches."""
    crops: float
    """Given by reading and cropping alone."""
    copied: float | None
    """Given by reading, cropping and copying to the GPU; only measured on one."""
    by_cpu: float
    """What the CPU time of the loader's pairs allows its threads."""
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
    """That this process has: its share, if each of several GPUs has a process."""


def examine(
    shard_set: ShardSet,
    *,
    recipe: str,
    backbone: str,
    batch_size: int,
    device: torch.device,
    gpus: int = 1,
    threads: int | None = None,
    timing: Timing | None = None,
    progress: Progress = SILENT,
) -> Facts:
    """Measure what `Facts` holds, for one of `gpus` whose processes share the cores.

    Raises `ConfigError` if the options do not fit the shards, or nothing could be trained with them.
    """
    PretrainConfig(backbone=backbone, batch_size=batch_size)  # it refuses what training does
    timing = timing or Timing(windows=5, seconds=0.5)
    share = max(1, cores() // max(1, gpus))
    setup, options = prepare(
        shard_set, batch_size=batch_size, device=device, threads=threads or share, progress=progress
    )
    loader = dali_loader(shard_set, options, recipe)
    crops = crop_stage(setup, options)
    step = new_step(backbone, setup.mel, batch_size, device)
    resident = resident_step(step, setup.mel, batch_size, device)
    fed = fed_step(_TOGETHER, loader, step, device)
    contenders = [crops, loader, resident, fed]
    other = torch_loader(shard_set, options, recipe, workers=cores(), per_batch=False)
    copies = copy_stage(setup, options)
    contenders.append(other if device.type == "cpu" else copies)
    found = in_turns(contenders, timing, device, title="Looking at every stage", progress=progress)
    together = Ratio.of(named(found, fed.name), named(found, resident.name))
    disk = limits.disk_read([Path(tar) for tar in setup.source.tars])
    return Facts(
        training=named(found, resident.name).median,
        loader=named(found, loader.name).median,
        together=named(found, fed.name).median,
        fed=together.median,
        spread=together.spread,
        waiting=named(found, waiting_of(fed.name)).median / 100,
        crops=named(found, crops.name).median,
        copied=named(found, copies.name).median if device.type == "cuda" else None,
        by_cpu=_by_cpu(named(found, loader.name), options["threads"]),
        disk=disk.bytes_per_second / bytes_read(setup),
        cold=disk.cold,
        other_backend=named(found, other.name).median if device.type == "cpu" else None,
        codec=shard_set.codec,
        device=device.type,
        threads=options["threads"],
        cores=share,
    )


def _by_cpu(loader: Measurement, threads: int) -> float:
    """Return the pairs per second that `threads` make if each works all the time."""
    assert loader.cpu_ms
    return 1000 * threads / loader.cpu_ms


def advise(facts: Facts) -> str:
    """Return whether there is anything to mend, and the one change that would help most."""
    found = (
        f"Training waits {facts.waiting:.0%} of the time and goes {facts.fed:.0%} as fast with the loader "
        f"as without (± {facts.spread:.0%})"
    )
    if facts.fed * (1 - facts.spread) >= _FED:
        return f"Nothing to mend. {found}.{_from_memory(facts)}"
    if facts.waiting < _WAITING:
        found += f": it does not wait for data, but shares the {_device(facts)} with the loader"
    if facts.fed * (1 + facts.spread) >= _FED:
        again = "look again when nothing else runs here"
        return f"Not certain within the spread: {again}. {found}.{_from_memory(facts)}"
    remedy, rate = _mend_reading(facts) if _reading_holds(facts) else _mend_features(facts)
    gain = "" if rate is None else f" With that, at most {max(rate, facts.together):,.0f} pairs/s."
    return f"{found}. {remedy}{gain}{_from_memory(facts)}"


def _device(facts: Facts) -> str:
    return "GPU" if facts.device == "cuda" else "CPU"


def _reading_holds(facts: Facts) -> bool:
    """Return whether reading and cropping is the lowest of the ceilings that loader and training have.

    A CPU does everything in turns, so that times add up; a GPU computes features while crops are read.
    """
    if facts.device == "cpu":
        return facts.crops < _features(facts)
    return _holds(facts.crops, facts)


def _holds(ceiling: float, facts: Facts) -> bool:
    """Return whether so many pairs per second are too near to what both give together."""
    return ceiling < HOLDS * facts.together


def _features(facts: Facts) -> float:
    """Return what a CPU would give of features and augmentations if their crops came from nowhere."""
    seconds = 1 / facts.loader - 1 / facts.crops
    return 1 / seconds if seconds > 0 else float("inf")


def _mend_reading(facts: Facts) -> tuple[str, float | None]:
    """Return what makes reading faster, and the pairs per second that it allows, if that is known."""
    without = facts.training if facts.device == "cuda" else _one_by_one(facts.training, _features(facts))
    if facts.cold and facts.crops / _MORE <= facts.disk < HOLDS * facts.crops:
        return "The disk holds it up: put the shards on a faster one, or into memory.", without
    if facts.codec != "wav":
        return (
            f"Decoding {facts.codec} holds it up: pack the audio with --codec wav, whose crops are read "
            f"without decoding."
        ), without
    if facts.threads < facts.cores:
        return _all_threads(facts, facts.crops)
    if facts.device == "cpu":
        return "Reading and cropping takes the CPU from training: use more cores, or a GPU.", None
    return "Reading and cropping holds it up: give each GPU more CPU cores.", facts.training


def _mend_features(facts: Facts) -> tuple[str, float | None]:
    """Return what makes features faster, and the pairs per second that it allows, if that is known."""
    if facts.device == "cuda":
        return _mend_gpu(facts)
    if facts.threads < facts.cores:
        return _all_threads(facts, facts.loader)
    if facts.other_backend is not None and facts.other_backend > _MORE * facts.loader:
        return (
            f"Features are computed on the CPU, where the torch backend gives {facts.other_backend:,.0f} "
            f"pairs/s: use --backend torch, or a GPU."
        ), _one_by_one(facts.training, facts.other_backend)
    return "Features are computed on the CPU, which training needs as well: use a GPU.", None


def _mend_gpu(facts: Facts) -> tuple[str, float]:
    """Return what makes faster what follows cropping on a GPU: the bus, the CPU's part, or kernels."""
    assert facts.copied is not None
    without = min(facts.training, facts.copied)
    if _holds(facts.copied, facts):
        remedy = "The bus to the GPU holds it up: see with nvidia-smi -q that it has all its lanes."
        return remedy, min(facts.training, facts.crops)
    if _holds(facts.by_cpu, facts) and facts.threads < facts.cores:
        return _all_threads(facts, facts.by_cpu)
    if _holds(facts.by_cpu, facts):
        return (
            "Setting batches up takes all CPU threads: run fewer processes on this machine, or use lighter "
            "audio steps."
        ), without
    if _holds(facts.loader, facts):
        return "The GPU takes that long for the recipe alone: use a lighter recipe.", without
    return "The GPU computes features and trains: use a lighter recipe or a larger batch.", without


def _all_threads(facts: Facts, ceiling: float) -> tuple[str, float]:
    """Return that more threads help, and the pairs per second if they raised the `ceiling` in full."""
    more = facts.cores / facts.threads
    rate = (
        min(facts.training, ceiling * more)
        if facts.device == "cuda"
        else _one_by_one(facts.training, facts.loader * more)
    )
    return (
        f"Only {facts.threads} of {facts.cores} cores made batches here: leave --threads out, as training "
        f"uses its share of all; a loader of your own takes threads={facts.cores}."
    ), rate


def _one_by_one(*rates: float) -> float:
    """Return the rate of doing one after the other, as what shares a CPU does."""
    return 1 / sum(1 / rate for rate in rates)


def _from_memory(facts: Facts) -> str:
    """Return what the disk would do to shards that do not fit into memory, if these were read from there."""
    if facts.cold and facts.disk * _MORE < min(facts.crops, facts.training):
        return (
            f" This was measured from memory: if your shards do not fit into it, the disk allows "
            f"{facts.disk:,.0f} pairs/s."
        )
    return ""
