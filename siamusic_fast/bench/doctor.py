"""Why does my GPU wait? What each stage gives, what training takes, and the change that helps most."""

from dataclasses import dataclass

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.peers import torch_loader
from siamusic_fast.bench.report import Measurement, Ratio, named
from siamusic_fast.bench.stages import (
    FEATURES,
    HAND_OVER,
    HOLDS,
    READ,
    bytes_read,
    of_recipe,
    plan_of_batch,
    prepare,
    stages,
)
from siamusic_fast.bench.timing import Timing, in_turns, waiting_of
from siamusic_fast.bench.train import fed_step, new_step, resident_step
from siamusic_fast.config import PretrainConfig
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

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
    """Pairs/s of the training step on a batch that is there already."""
    loader: float
    """Pairs/s of the loader, alone on the machine."""
    together: float
    """Pairs/s of training when the loader feeds the step and both share the machine."""
    fed: float
    """`together` over `training`, measured in turns."""
    spread: float
    """How far the windows of `fed` are from their median, as a share of it."""
    waiting: float
    """Share of the time, 0 to 1, that the step waits for batches."""
    plan: float
    """Pairs/s that one thread plans and prepares for DALI."""
    read: float
    """Pairs/s that are planned and read, with nothing else done."""
    handed_over: float
    """Pairs/s that are planned, read and handed over to DALI, on a GPU copied to it as well."""
    features: float
    """Pairs/s of the loader without augmentations."""
    by_cpu: float
    """Pairs/s that the loader's threads could make if each worked all the time."""
    disk: float
    """Pairs/s that the disk allows, of one crop a track, or of whole tracks where they must be decoded."""
    cold: bool
    """Whether the disk was measured, and not the memory that held the files."""
    other_backend: float | None
    """Pairs/s of the torch backend; only measured on a CPU."""
    codec: str
    """How the audio in the shards is stored."""
    device: str
    """Type of the device, cpu or cuda."""
    threads: int
    """CPU threads of the loader."""
    cores: int
    """Cores that this process has: its share, if each of several GPUs has a process."""


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
    setup = prepare(
        shard_set, batch_size=batch_size, device=device, threads=threads or share, progress=progress
    )
    plan = plan_of_batch(setup, recipe)
    own = stages(setup, [recipe])[1:]
    step = new_step(backbone, setup.mel, batch_size, device)
    resident = resident_step(step, setup.mel, batch_size, device)
    fed = fed_step(_TOGETHER, own[-1], step, device)
    other = [torch_loader(setup, recipe)] if device.type == "cpu" else []
    found = in_turns(
        [plan, *own, resident, fed, *other], timing, device, title="Looking at every stage", progress=progress
    )
    rates = {one.name: one.median for one in found}
    together = Ratio.of(named(found, fed.name), named(found, resident.name))
    disk = limits.disk_read([shard_set.path(shard.file) for shard in setup.plan.tracks.shards])
    return Facts(
        training=rates[resident.name],
        loader=rates[of_recipe(recipe)],
        together=rates[fed.name],
        fed=together.median,
        spread=together.spread,
        waiting=rates[waiting_of(fed.name)] / 100,
        plan=rates[plan.name],
        read=rates[READ],
        handed_over=rates[HAND_OVER],
        features=rates[FEATURES],
        by_cpu=_by_cpu(named(found, of_recipe(recipe)), setup.threads),
        disk=disk.bytes_per_second / bytes_read(setup),
        cold=disk.cold,
        other_backend=rates[other[0].name] if other else None,
        codec=shard_set.codec,
        device=device.type,
        threads=setup.threads,
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
    """Return whether reading is what costs most of the loader's time, or on a GPU a ceiling that is too near.

    What shares a CPU is done one after the other, so that times add up; a GPU computes while spans are read.
    """
    if facts.device == "cpu":
        return facts.handed_over < _computing(facts)
    return _holds(facts.read, facts)


def _holds(ceiling: float, facts: Facts) -> bool:
    """Return whether so many pairs per second are too near to what both give together."""
    return ceiling < HOLDS * facts.together


def _computing(facts: Facts) -> float:
    """Return what a CPU would give of features and augmentations if their samples came from nowhere."""
    return _without(facts.loader, facts.handed_over)


def _without(rate: float, before: float) -> float:
    """Return the rate of what is done after `before`, when all of it has that `rate`."""
    seconds = 1 / rate - 1 / before
    return 1 / seconds if seconds > 0 else float("inf")


def _mend_reading(facts: Facts) -> tuple[str, float | None]:
    """Return what makes reading faster, and the pairs per second that it allows, if that is known."""
    without = facts.training if facts.device == "cuda" else _one_by_one(facts.training, _computing(facts))
    if facts.cold and facts.read / _MORE <= facts.disk < HOLDS * facts.read:
        return "The disk holds it up: put the shards on a faster one, or into memory.", without
    if facts.codec != "wav":
        return (
            f"Decoding {facts.codec} holds it up: pack the audio with --codec wav, whose crops are read "
            f"without decoding."
        ), without
    if facts.threads < facts.cores:
        return _all_threads(facts, facts.read)
    if facts.device == "cpu":
        return "Reading takes the CPU from training: use more cores, or a GPU.", None
    return "Reading holds it up: give each GPU more CPU cores.", facts.training


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
    if _without(facts.loader, facts.features) < _without(facts.features, facts.handed_over):
        remedy = "Augmentations take more of the CPU than features: use a lighter recipe, or a GPU."
        return remedy, _one_by_one(facts.training, facts.features)
    return "Features are computed on the CPU, which training needs as well: use a GPU.", None


def _mend_gpu(facts: Facts) -> tuple[str, float]:
    """Return what makes faster what is not reading: the plan, the bus, the CPU's part, or kernels."""
    without = min(facts.training, facts.handed_over)
    if _holds(facts.plan, facts):
        return (
            "Planning, which one core does, holds it up: use a recipe of fewer steps, or larger batches."
        ), without
    if _holds(facts.handed_over, facts):
        remedy = "The bus to the GPU holds it up: see with nvidia-smi -q that it has all its lanes."
        return remedy, min(facts.training, facts.read)
    if _holds(facts.by_cpu, facts) and facts.threads < facts.cores:
        return _all_threads(facts, facts.by_cpu)
    if _holds(facts.by_cpu, facts):
        return (
            "Setting batches up takes all CPU threads: run fewer processes on this machine, or use lighter "
            "audio steps."
        ), without
    if _holds(facts.features, facts):
        return "The GPU takes that long for the features alone: use shorter crops with --seconds.", without
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
        f"uses its share of all; a loader of your own takes loader_threads={facts.cores}."
    ), rate


def _one_by_one(*rates: float) -> float:
    """Return the rate of doing one after the other, as what shares a CPU does."""
    return 1 / sum(1 / rate for rate in rates)


def _from_memory(facts: Facts) -> str:
    """Return what the disk would do to shards that do not fit into memory, if these were read from there."""
    if facts.cold and facts.disk * _MORE < min(facts.read, facts.training):
        return (
            f" This was measured from memory: if your shards do not fit into it, the disk allows "
            f"{facts.disk:,.0f} pairs/s."
        )
    return ""
