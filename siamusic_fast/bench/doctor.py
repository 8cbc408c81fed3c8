"""Finds out whether training waits for data, which stage is the reason, and which change would help most."""

from collections.abc import Iterator
from dataclasses import dataclass

from siamusic_fast.bench.machine_limits import read_disk
from siamusic_fast.bench.report import Ratio, named
from siamusic_fast.bench.stages import (
    FEATURES,
    HAND_OVER,
    READ,
    Setup,
    loader_workload,
    plan_stage,
    stages,
)
from siamusic_fast.bench.timing import Timing, measure_in_turns, waiting_of
from siamusic_fast.bench.train import RESIDENT, WITH_DALI, TrainingStep, fed_workload, resident_workload
from siamusic_fast.progress import SILENT, Progress

TRAINING, TOGETHER, LOADER = "training on a resident batch", "training with the loader", "loader alone"
PLANNING, READING, HANDING_OVER = "planning, one thread", "planning and reading", "handing over to DALI"
FEATURES_ALONE, CPU_THREADS, DISK = "loader without augmentations", "CPU threads of the loader", "disk"
TORCH = "torch engine"

_FED = 0.95
"""Share of its own rate that training keeps if the loader is fast enough."""
_WAITING = 0.05
"""Share of waiting below which training does not wait for data."""
_HEADROOM = 1.25
"""Factor above the rate of both together that a stage needs so as not to be the bottleneck."""
_FASTER = 1.05
"""Factor from which on one rate counts as higher than another."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured of every stage on the way to the GPU, and the settings that matter."""

    rates: dict[str, float]
    """Pairs/s by stage: `TRAINING`, `TOGETHER` and so on; `TORCH` on a CPU only."""
    fed: float
    """Rate of `TOGETHER` over that of `TRAINING`, measured in turns."""
    spread: float
    """Largest distance of a window of `fed` from its median, as a share of it."""
    waiting: float
    """Share of the time, 0 to 1, that the training step waits for batches."""
    cold: bool
    """Whether the files came from the disk, and not from the memory that the kernel keeps them in."""
    codec: str
    """Codec of the shards."""
    device: str
    """Type of the device: cpu or cuda."""
    loader_threads: int
    """CPU threads of the loader."""
    cores: int
    """Cores of this process: its share, if each of several GPUs has a process."""


def examine(
    setup: Setup,
    aug: str,
    backbone: str,
    cores: int,
    timing: Timing,
    progress: Progress = SILENT,
) -> Facts:
    """Measure the `Facts` of a process that has so many `cores`; the longest of all is the training step.

    Raises `ConfigError` if training would refuse the options.
    """
    step = TrainingStep(backbone, setup)
    plan, ours = plan_stage(setup, aug), loader_workload(setup, aug)
    resident, fed = resident_workload(step, setup), fed_workload(WITH_DALI, ours, step, setup.device)
    other = [loader_workload(setup, aug, "torch")] if setup.device.type == "cpu" else []
    workloads = [plan, *stages(setup, [aug])[1:], resident, fed, *other]
    found = measure_in_turns(workloads, timing, setup.device, title="All stages", progress=progress)
    disk = read_disk(setup.tars)
    names = {
        TRAINING: RESIDENT,
        TOGETHER: WITH_DALI,
        LOADER: ours.name,
        FEATURES_ALONE: FEATURES,
        HANDING_OVER: HAND_OVER,
        READING: READ,
        PLANNING: plan.name,
    } | ({TORCH: other[0].name} if other else {})
    rates = {stage: named(found, name).median for stage, name in names.items()}
    cpu_ms = named(found, ours.name).cpu_ms or 0.0
    rates[CPU_THREADS] = pairs_by_cpu(cpu_ms, setup.loader_threads)
    rates[DISK] = disk.bytes_per_second / setup.bytes_read
    together = Ratio.of(named(found, WITH_DALI), named(found, RESIDENT))
    return Facts(
        rates=rates,
        fed=together.median,
        spread=together.spread,
        waiting=named(found, waiting_of(WITH_DALI)).median / 100,
        cold=disk.cold,
        codec=setup.shard_set.codec,
        device=setup.device.type,
        loader_threads=setup.loader_threads,
        cores=cores,
    )


def pairs_by_cpu(cpu_ms: float, threads: int) -> float:
    """Return the pairs per second that `threads` make of `cpu_ms` each if all of them work all the time."""
    return 1000 * threads / cpu_ms if cpu_ms else float("inf")


def advise(facts: Facts) -> str:
    """Return whether training waits for data, and the one change that would help most."""
    found = (
        f"Training waits {facts.waiting:.0%} of the time and runs at {facts.fed:.0%} of its own rate with "
        f"the loader (± {facts.spread:.0%})"
    )
    if facts.fed * (1 - facts.spread) >= _FED:
        return f"Nothing to change. {found}.{_warn_of_disk(facts)}"
    if facts.waiting < _WAITING:
        shared = "GPU" if facts.device == "cuda" else "CPU"
        found += f": it does not wait for data, but shares the {shared} with the loader"
    if facts.fed * (1 + facts.spread) >= _FED:
        again = "run this again when nothing else runs here"
        return f"Not certain within the spread: {again}. {found}.{_warn_of_disk(facts)}"
    candidates = _remedies_on_gpu(facts) if facts.device == "cuda" else _remedies_on_cpu(facts)
    remedy, rate = next((remedy, rate) for applies, remedy, rate in candidates if applies)
    rate = rate and max(rate, facts.rates[TOGETHER])
    promise = f" That would give at most {rate:,.0f} pairs/s." if rate else ""
    return f"{found}. {remedy}{promise}{_warn_of_disk(facts)}"


Remedy = tuple[bool, str, float | None]
"""Whether it applies, what to do, and the pairs per second that the other stages allow then, if known."""


def _remedies_on_gpu(facts: Facts) -> Iterator[Remedy]:
    """Yield remedies in the order of the stages. Stages run at the same time: the slowest is the limit."""
    rates, training = facts.rates, facts.rates[TRAINING]
    slow = {stage: rate < _HEADROOM * rates[TOGETHER] for stage, rate in rates.items()}
    rest, more = min(training, rates[HANDING_OVER]), facts.cores / facts.loader_threads
    if slow[READING]:
        yield from _remedies_of_reading(facts, training)
        yield more > 1, _all_threads(facts), min(training, rates[READING] * more)
        yield True, "Reading is the bottleneck: give each GPU more CPU cores.", training
    yield slow[PLANNING], "Planning, on one core, is the bottleneck: use fewer augmentations.", rest
    lanes = "The bus to the GPU is the bottleneck: see with nvidia-smi -q that it has all its lanes."
    yield slow[HANDING_OVER], lanes, min(training, rates[READING])
    yield slow[CPU_THREADS] and more > 1, _all_threads(facts), min(training, rates[CPU_THREADS] * more)
    yield slow[CPU_THREADS], "The CPU threads are the bottleneck: run fewer processes on this machine.", rest
    yield slow[FEATURES_ALONE], "The GPU is busy with features alone: use shorter crops, --seconds.", rest
    yield True, "The GPU is busy with augmentations or training: use lighter augmentations.", rest


def _remedies_on_cpu(facts: Facts) -> Iterator[Remedy]:
    """Yield remedies in the order of the stages. All share the cores, so the times of a pair add up."""
    rates, training, loader = facts.rates, facts.rates[TRAINING], facts.rates[LOADER]
    more = facts.cores / facts.loader_threads
    computing = _without(loader, rates[HANDING_OVER])
    reading_is_slow = rates[HANDING_OVER] < computing
    if reading_is_slow:
        yield from _remedies_of_reading(facts, _in_sequence(training, computing))
    yield more > 1, _all_threads(facts), _in_sequence(training, loader * more)
    yield reading_is_slow, "Reading takes the CPU from training: use more cores, or a GPU.", None
    other = rates.get(TORCH, 0.0)
    engine = f"The torch engine computes {other:,.0f} pairs/s here: use --backend torch, or a GPU."
    yield other > _FASTER * loader, engine, _in_sequence(training, other or loader)
    augmentations = _without(loader, rates[FEATURES_ALONE])
    are_slow = augmentations < _without(rates[FEATURES_ALONE], rates[HANDING_OVER])
    lighter = "Augmentations take more of the CPU than features: use lighter augmentations, or a GPU."
    yield are_slow, lighter, _in_sequence(training, rates[FEATURES_ALONE])
    yield True, "Features are computed on the CPU, which training needs as well: use a GPU.", None


def _remedies_of_reading(facts: Facts, rest: float) -> Iterator[Remedy]:
    """Yield what makes reading faster; without it, `rest` pairs per second are possible."""
    read, disk = facts.rates[READING], facts.rates[DISK]
    at_limit = facts.cold and read / _FASTER <= disk < _HEADROOM * read
    yield at_limit, "The disk is the bottleneck: put the shards on a faster one, or into memory.", rest
    yield facts.codec != "wav", f"Decoding {facts.codec} is the bottleneck: pack with --codec wav.", rest


def _all_threads(facts: Facts) -> str:
    return (
        f"Only {facts.loader_threads} of {facts.cores} cores made batches here: leave --loader-threads out; "
        f"give a loader of your own loader_threads={facts.cores}."
    )


def _without(rate: float, before: float) -> float:
    """Return the rate of what is done after the stage `before`, when all of it has that `rate`."""
    seconds = 1 / rate - 1 / before
    return 1 / seconds if seconds > 0 else float("inf")


def _in_sequence(*rates: float) -> float:
    """Return the rate of doing one thing after the other."""
    return 1 / sum(1 / rate for rate in rates)


def _warn_of_disk(facts: Facts) -> str:
    """Return what the disk allows shards that do not fit into memory, if these were read from there."""
    disk = facts.rates[DISK]
    if not facts.cold or disk * _FASTER >= min(facts.rates[READING], facts.rates[TRAINING]):
        return ""
    return f" Shards that do not fit into memory are read from the disk, which allows {disk:,.0f} pairs/s."
