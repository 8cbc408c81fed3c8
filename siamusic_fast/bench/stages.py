"""The stages of the DALI loader, one more at a time: each costs what it differs from the one before."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from siamusic_fast.bench.report import Measurement, added_ms, named, number
from siamusic_fast.bench.timing import Contender
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.base_loader import Loader
from siamusic_fast.pipelines.dali.engine import PREFETCH, DaliEngine
from siamusic_fast.pipelines.dali.inputs import Feed
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loader_settings import LoaderSettings
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Computed, Engine, Ready
from siamusic_fast.pipelines.recipes import to_recipe
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

PLAN = "DALI: plan"
READ = "DALI: read"
HAND_OVER = "DALI: read and hand over"
FEATURES = "DALI: features alone"

AHEAD = 4
"""Batches that a loader makes in advance: as many as have their samples in memory."""
BATCH_ON_GPU = 256
_BATCH_ON_CPU, _CODEC = 64, "wav"
"""Size of the batches, and codec of the shards, that the targets of the project were set for."""
_PLANNED = 256
"""Pairs in the batch whose plan has a target of its own."""
_ON_GPU, _GPU = {"image": 20_000.0, "audio": 10_000.0}, "H200"
"""Pairs/s that the project asks for on that GPU, by recipe."""
_HANDED_OVER, _CORES = 21_000.0, 2
"""Pairs/s that it asks for on a CPU of so many cores: four times what the graph that read by itself gave."""
_PLAN_MS = {"image": 8.0}
"""Milliseconds of one core that it allows for the plan of a batch of `_PLANNED`, by recipe."""
HOLDS = 1.25
"""What gives less than so many times what the whole gives is what holds the whole up."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all contenders of a benchmark share."""

    shard_set: ShardSet
    """Shards that all read."""
    config: LoaderSettings
    """Settings of the DALI loader."""
    plan: Plan | TrackPlan
    """Plan of pairs without augmentations."""
    device: torch.device
    """Device of the DALI loader, with a number if it is a GPU."""
    threads: int
    """CPU threads of the DALI loader."""

    @property
    def frontend(self) -> Frontend:
        """Features of all loaders."""
        return self.plan.frontend

    @property
    def mel(self) -> MelConfig:
        """Settings of the mel spectrogram."""
        return self.plan.frontend.mel


def prepare(
    shard_set: ShardSet,
    *,
    batch_size: int,
    device: torch.device,
    mel: MelConfig | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Setup:
    """Return what the contenders share; raise `ConfigError` if it does not fit the shards."""
    threads = threads or cores()
    config = LoaderSettings(
        frontend=estimate_frontend(shard_set, mel, progress),
        batch_size=batch_size,
        device=device,
        loader_threads=threads,
    )
    with TwoViewLoader(shard_set, aug="none", **vars(config)) as loader:
        return Setup(
            shard_set=shard_set, config=config, plan=loader.plan, device=loader.device, threads=threads
        )


def stages(setup: Setup, recipes: Sequence[str]) -> list[Contender]:
    """Return a contender for each stage: plan, reading, handing over, features, each recipe."""
    return [
        plan_stage(setup),
        read_stage(setup),
        hand_over_stage(setup),
        *(dali_loader(setup.shard_set, setup.config, recipe) for recipe in dict.fromkeys(["none", *recipes])),
    ]


def plan_stage(setup: Setup) -> Contender:
    """Return deciding batches in one thread, and preparing what DALI is fed besides their samples."""
    return Contender(
        name=PLAN, items=setup.plan.batch_size, open=lambda: _plans(setup.plan, setup.device), ours=True
    )


def read_stage(setup: Setup) -> Contender:
    """Return planning and reading into the buffers of the loader."""
    return _stage(READ, setup, _Reading)


def hand_over_stage(setup: Setup) -> Contender:
    """Return planning, reading and handing over to a DALI graph, which copies to the GPU if there is one."""
    of_cores = setup.device.type == "cpu" and setup.threads == cores() == _CORES
    asked = of_cores and as_asked(setup.shard_set, setup.config)
    return replace(_stage(HAND_OVER, setup, _HandingOver), target=_HANDED_OVER if asked else None)


def plan_of_batch(setup: Setup, recipe: str) -> Contender:
    """Return planning batches of 256 with `recipe`; a set of fewer tracks has each several times."""
    tracks = setup.plan.tracks
    repeated = np.resize(np.arange(len(tracks)), max(_PLANNED, len(tracks)))
    plan = Plan(
        tracks.only(np.sort(repeated)),
        setup.frontend,
        recipe=to_recipe(recipe, setup.mel),
        views=2,
        batch_size=_PLANNED,
    )
    return Contender(name=of_plan(recipe), items=_PLANNED, open=lambda: _plans(plan, setup.device), ours=True)


def with_plan_times(found: Sequence[Measurement], recipes: Sequence[str]) -> list[Measurement]:
    """Return `found` with the CPU time of the plans of `plan_of_batch` in place of their rates."""
    targets = {of_plan(recipe): _PLAN_MS.get(recipe) for recipe in recipes}
    return [
        Measurement(
            name=one.name,
            unit="ms of one core",
            windows=tuple(_PLANNED * milliseconds for milliseconds in one.cpu_windows),
            ours=True,
            target=targets[one.name],
            at_most=True,
        )
        if one.name in targets
        else one
        for one in found
    ]


def bytes_read(setup: Setup) -> float:
    """Return what is read of a track: one crop, or all of it where it must be decoded."""
    if setup.shard_set.codec == "wav":
        return 2 * setup.plan.crop_samples
    return float(setup.plan.tracks.size.mean())


def as_asked(shard_set: ShardSet, config: LoaderSettings) -> bool:
    """Return whether shards and batches are those that the project's targets were set for."""
    on_gpu = torch.device(config.device).type == "cuda"
    return shard_set.codec == _CODEC and config.batch_size == (BATCH_ON_GPU if on_gpu else _BATCH_ON_CPU)


def chains(recipes: Sequence[str]) -> dict[str, str]:
    """Return for each of the `stages` the name of the one that it extends; the plan extends none: ""."""
    befores = {PLAN: "", READ: PLAN, HAND_OVER: READ, FEATURES: HAND_OVER}
    return befores | {of_recipe(recipe): FEATURES for recipe in recipes if recipe != "none"}


def held_by(found: Sequence[Measurement], befores: Mapping[str, str], recipe: str) -> str:
    """Return in words how long a pair of `recipe` takes, and which of its stages adds most to that.

    That is so on a CPU, whose cores all stages share.
    """
    name = of_recipe(recipe)
    chain = [name]
    while before := befores[chain[-1]]:
        chain.append(before)
    added = {stage: added_ms(found, stage, befores) for stage in chain}
    most = max(chain, key=added.__getitem__)
    return (
        f"what holds {name}: of {1000 / named(found, name).median:.2f} ms a pair, {added[most]:.2f} ms are "
        f"what {most} adds"
    )


def held_on_gpu(found: Sequence[Measurement], recipe: str, threads: int, bus: float) -> str:
    """Return in words what holds `recipe` on a GPU, where all goes on at the same time: the lowest ceiling.

    The `bus` allows so many pairs/s; the plan, what one core makes; the CPU, what the CPU seconds of a pair
    leave to the `threads`. If none of these nor reading and handing over is near the rate, the kernels are
    what is left.
    """
    loader = named(found, of_recipe(recipe))
    assert loader.cpu_ms is not None
    ceilings = {
        "the plan, on one core": 1000 * _PLANNED / named(found, of_plan(recipe)).median,
        READ: named(found, READ).median,
        HAND_OVER: named(found, HAND_OVER).median,
        "the bus": bus,
        f"the CPU time, on {threads} threads": 1000 * threads / loader.cpu_ms,
    }
    lowest = min(ceilings, key=ceilings.__getitem__)
    holds = lowest if ceilings[lowest] < HOLDS * loader.median else "the kernels, as nothing else is near"
    allowed = ", ".join(f"{name} {number(rate)}" for name, rate in ceilings.items())
    return f"what holds {loader.name} at {number(loader.median)} pairs/s: {holds}; allowed are: {allowed}"


def of_recipe(recipe: str) -> str:
    """Return the name of the DALI loader with `recipe`."""
    return FEATURES if recipe == "none" else f"DALI: recipe {recipe}"


def of_plan(recipe: str) -> str:
    """Return the name of the time that the plan of a batch with `recipe` takes."""
    return f"DALI: plan of {_PLANNED} pairs, recipe {recipe}"


def dali_loader(shard_set: ShardSet, config: LoaderSettings, recipe: str) -> Contender:
    """Return the loader that users have."""
    return Contender(
        name=of_recipe(recipe),
        items=config.batch_size,
        open=lambda: TwoViewLoader(shard_set, aug=recipe, **vars(config)),
        ahead=AHEAD,
        ours=True,
        target=_ON_GPU.get(recipe) if _on_that_gpu(config) and as_asked(shard_set, config) else None,
    )


def _on_that_gpu(config: LoaderSettings) -> bool:
    """Return whether the device is the GPU that the rates on a GPU were asked for."""
    device = torch.device(config.device)
    return device.type == "cuda" and _GPU in torch.cuda.get_device_name(device)


@contextmanager
def _plans(plan: Plan | TrackPlan, device: torch.device) -> Iterator[Iterator[object]]:
    """Give what DALI is fed besides samples, batch by batch."""
    engine = DaliEngine(plan, device, threads=1)
    places = ((epoch, batch) for epoch in itertools.count() for batch in range(plan.batches))
    yield (engine.begin(plan.batch(place)) for place in places)


class _StageLoader(Loader[None]):
    """A loader whose engine does a part of the work."""

    def __init__(self, setup: Setup, engine: Engine) -> None:
        super().__init__(setup.config, setup.plan, check_labels=False)
        self._engine = engine

    def _output(self, batch: Batch, views: list[Tensor]) -> None:
        """Give nothing out."""


class _Reading(DaliEngine):
    """Prepares batches as DALI's engine does and computes nothing of them."""

    def run(self, batches: Iterator[Ready]) -> Iterator[Computed]:
        return (Computed(ready, [], None) for ready in batches)


class _HandingOver(DaliEngine):
    """Hands the samples over to a graph that gives them out as they are, on the device."""

    def __init__(self, plan: Plan | TrackPlan, device: torch.device, threads: int) -> None:
        super().__init__(plan, device, threads)
        self._feed = Feed()
        self._pipeline = Pipeline(
            batch_size=plan.batch_size,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=PREFETCH,
        )
        with self._pipeline:
            (spans,) = self._feed.source(lambda ready: ready.pcm[:1], 1)
            self._pipeline.set_outputs(spans.gpu() if device.type == "cuda" else spans)
        self._pipeline.build()


def _stage(
    name: str, setup: Setup, engine: Callable[[Plan | TrackPlan, torch.device, int], Engine]
) -> Contender:
    return Contender(
        name=name,
        items=setup.plan.batch_size,
        open=lambda: _StageLoader(setup, engine(setup.plan, setup.device, setup.threads)),
        ahead=AHEAD,
        ours=True,
    )
