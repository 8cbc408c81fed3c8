"""Finds out whether training waits for data, which stage is the reason, and which change would help most."""

from collections.abc import Iterator
from dataclasses import dataclass

from siamusic_fast.bench.disk import COLD, read_disk
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
from siamusic_fast.bench.train import RESIDENT, WITH_DALI, fed_workload, resident_workload, training_step
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
    step = training_step(backbone, setup)
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
    rates[CPU_THREADS] = 1000 * setup.loader_threads / cpu_ms if cpu_ms else float("inf")
    rates[DISK] = 1e9 * disk.median / setup.bytes_read
    together = Ratio.of(named(found, WITH_DALI), named(found, RESIDENT))
    return Facts(
        rates=rates,
        fed=together.median,
        spread=together.spread,
        waiting=named(found, waiting_of(WITH_DALI)).median / 100,
        cold=disk.setting == COLD,
        codec=setup.shard_set.codec,
        device=setup.device.type,
        loader_threads=setup.loader_threads,
        cores=cores,
    )


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
    remedy = next(remedy for applies, remedy in candidates if applies)
    return f"{found}. {remedy}{_warn_of_disk(facts)}"


def _remedies_on_gpu(facts: Facts) -> Iterator[tuple[bool, str]]:
    """Yield whether each remedy applies, in the order of the stages.

    Stages run at the same time: the slowest is the limit.
    """
    slow = {stage: rate < _HEADROOM * facts.rates[TOGETHER] for stage, rate in facts.rates.items()}
    idle_cores = facts.loader_threads < facts.cores
    if slow[READING]:
        yield from _remedies_of_reading(facts)
        yield idle_cores, _all_threads(facts)
        yield True, "Reading is the bottleneck: give each GPU more CPU cores."
    yield slow[PLANNING], "Planning, on one core, is the bottleneck: use fewer augmentations."
    lanes = "The bus to the GPU is the bottleneck: see with nvidia-smi -q that it has all its lanes."
    yield slow[HANDING_OVER], lanes
    yield slow[CPU_THREADS] and idle_cores, _all_threads(facts)
    yield slow[CPU_THREADS], "The CPU threads are the bottleneck: run fewer processes on this machine."
    yield slow[FEATURES_ALONE], "The GPU is busy with features alone: use shorter crops, --seconds."
    yield True, "The GPU is busy with augmentations or training: use lighter augmentations."


def _remedies_on_cpu(facts: Facts) -> Iterator[tuple[bool, str]]:
    """Yield whether each remedy applies, in the order of the stages.

    All stages share the cores, so the times of a pair add up.
    """
    seconds = {stage: 1 / rate for stage, rate in facts.rates.items()}
    reading = seconds[HANDING_OVER]
    features = seconds[FEATURES_ALONE] - reading
    augmenting = seconds[LOADER] - seconds[FEATURES_ALONE]
    reading_is_slow = reading > seconds[LOADER] - reading
    if reading_is_slow:
        yield from _remedies_of_reading(facts)
    yield facts.loader_threads < facts.cores, _all_threads(facts)
    yield reading_is_slow, "Reading takes the CPU from training: use more cores, or a GPU."
    other = facts.rates.get(TORCH, 0.0)
    engine = f"The torch engine computes {other:,.0f} pairs/s here: use --backend torch, or a GPU."
    yield other > _FASTER * facts.rates[LOADER], engine
    lighter = "Augmentations take more of the CPU than features: use lighter augmentations, or a GPU."
    yield augmenting > features, lighter
    yield True, "Features are computed on the CPU, which training needs as well: use a GPU."


def _remedies_of_reading(facts: Facts) -> Iterator[tuple[bool, str]]:
    read, disk = facts.rates[READING], facts.rates[DISK]
    at_limit = facts.cold and read / _FASTER <= disk < _HEADROOM * read
    yield at_limit, "The disk is the bottleneck: put the shards on a faster one, or into memory."
    yield facts.codec != "wav", f"Decoding {facts.codec} is the bottleneck: pack with --codec wav."


def _all_threads(facts: Facts) -> str:
    return (
        f"Only {facts.loader_threads} of {facts.cores} cores made batches here: leave --loader-threads out; "
        f"give a loader of your own loader_threads={facts.cores}."
    )


def _warn_of_disk(facts: Facts) -> str:
    """Return what the disk allows shards that do not fit into memory, if these were read from there."""
    disk = facts.rates[DISK]
    if not facts.cold or disk * _FASTER >= min(facts.rates[READING], facts.rates[TRAINING]):
        return ""
    return f" Shards that do not fit into memory are read from the disk, which allows {disk:,.0f} pairs/s."
