"""The stages of the DALI loader: each does what the one before it does, and one thing more."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import Pipeline

from siamusic_fast.bench.timing import Timing, Workload
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.dali.engine import PREFETCH, DaliEngine
from siamusic_fast.pipelines.dali.inputs import Feed
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.plan import Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Computed, Engine, Prefetcher, Ready
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

PLAN = "DALI: plan"
READ = "DALI: read"
HAND_OVER = "DALI: read and hand over"
FEATURES = "DALI: features"

MAX_AHEAD = 4
"""Number of batches that a loader makes ahead: as many as have their samples in memory."""
_MAX_READERS = 4
"""Number of threads that read, at most, as in a loader."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The shards and the settings that all loaders of a benchmark share."""

    shard_set: ShardSet
    frontend: Frontend
    plan: Plan | TrackPlan
    """Plan of pairs without augmentations."""
    batch_size: int
    device: torch.device
    """Device that computes the features, with a number if it is a GPU."""
    loader_threads: int

    def open_loader(self, aug: str, **changes: Any) -> TwoViewLoader:
        """Return a loader with `aug`; `changes` are keywords of `TwoViewLoader` that differ."""
        keywords: dict[str, Any] = {
            "frontend": self.frontend,
            "batch_size": self.batch_size,
            "device": self.device,
            "loader_threads": self.loader_threads,
        }
        return TwoViewLoader(self.shard_set, aug=aug, **(keywords | changes))

    def settings(self, timing: Timing) -> dict[str, Any]:
        """Return the settings that a report names."""
        return {
            "shards": self.shard_set.source,
            "codec": self.shard_set.codec,
            "tracks": len(self.plan.tracks),
            "batch_size": self.batch_size,
            "device": self.device.type,
            "loader_threads": self.loader_threads,
            "windows": timing.windows,
            "window_seconds": timing.seconds,
            "mel": asdict(self.frontend.mel),
        }

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Shape of a view of a batch."""
        return self.batch_size, 1, self.frontend.mel.n_mels, self.frontend.mel.frames

    @property
    def tars(self) -> list[Path]:
        """Files that the tracks are in; of a set in object storage, those that are in the cache."""
        shards, cache = self.plan.tracks.shards, self.shard_set.cache
        if cache is None:
            return [self.shard_set.path(shard.file) for shard in shards]
        return [path for shard in shards if (path := cache.path(shard.sha256)).exists()]

    @property
    def crop_bytes(self) -> int:
        """Size of the samples of one crop."""
        return 2 * self.frontend.crop_samples(self.shard_set.sample_rate)

    @property
    def bytes_read(self) -> float:
        """Bytes that are read of a track: one crop, or the whole track where it must be decoded."""
        if self.shard_set.codec == "wav":
            return self.crop_bytes
        return float(self.plan.tracks.size.mean())


def prepare(
    shard_set: ShardSet,
    *,
    batch_size: int,
    device: torch.device,
    mel: MelConfig | None = None,
    loader_threads: int | None = None,
    progress: Progress = SILENT,
) -> Setup:
    """Return what all loaders share; raise `ConfigError` if it does not fit the shards.

    Warns if there are fewer tracks than `batch_size`: then a batch has all of them.
    """
    if (tracks := shard_set.tracks(["training"])) < batch_size:
        warnings.warn(
            f"batch_size = {batch_size} is more than the {tracks} tracks: a batch has {tracks}", stacklevel=2
        )
    shared: dict[str, Any] = {
        "frontend": estimate_frontend(shard_set, mel, progress),
        "batch_size": min(batch_size, tracks),
        "loader_threads": loader_threads or cores(),
    }
    with TwoViewLoader(shard_set, aug="none", device=device, **shared) as loader:
        return Setup(shard_set=shard_set, plan=loader.plan, device=torch.device(loader.device), **shared)


def stages(setup: Setup, augs: Sequence[str]) -> list[Workload]:
    """Return a workload for each stage: planning, reading, handing over, features, and each of `augs`."""
    return [
        plan_stage(setup),
        _prefetching(setup, READ, PLAN, _Reading),
        _prefetching(setup, HAND_OVER, READ, _HandingOver),
        *(loader_workload(setup, aug) for aug in dict.fromkeys(["none", *augs])),
    ]


def plan_stage(setup: Setup, aug: str = "none") -> Workload:
    """Return deciding batches with `aug` in one thread, and preparing what DALI is fed besides samples."""

    @contextmanager
    def opened() -> Iterator[Iterator[object]]:
        with setup.open_loader(aug) as loader:
            engine = DaliEngine(loader.plan, setup.device, threads=1)
            yield (engine.begin(loader.plan.batch(place)) for place in _places(loader.plan))

    name = PLAN if aug == "none" else f"{PLAN}, {aug}"
    return Workload(name=name, items=setup.batch_size, open=opened, ours=True)


def loader_workload(setup: Setup, aug: str, backend: str = "dali") -> Workload:
    """Return the loader that users have."""
    computing = "whole batches on the GPU" if setup.device.type == "cuda" else "on the CPU"
    return Workload(
        name=loader_name(aug, backend),
        items=setup.batch_size,
        open=lambda: setup.open_loader(aug, backend=backend),
        max_ahead=MAX_AHEAD,
        setting="" if backend == "dali" else f"{setup.loader_threads} threads, {computing}",
        ours=backend == "dali",
        extends="" if backend != "dali" else FEATURES if aug != "none" else HAND_OVER,
    )


def loader_name(aug: str, backend: str) -> str:
    """Return the name of the loader of a `backend` with the augmentations `aug`."""
    return f"{'DALI' if backend == 'dali' else backend}: {'features' if aug == 'none' else aug}"


def _prefetching(
    setup: Setup, name: str, extends: str, engine_of: Callable[[Plan | TrackPlan, torch.device, int], Engine]
) -> Workload:
    """Return planning and reading batches for an engine that does a part of the work."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        reader = Reader(setup.plan.tracks, setup.frontend)
        engine = engine_of(setup.plan, setup.device, setup.loader_threads)
        prefetcher = Prefetcher(
            setup.plan,
            reader,
            engine,
            _places(setup.plan),
            threads=min(setup.loader_threads, _MAX_READERS),
            depth=MAX_AHEAD,
            pinned=setup.device.type != "cpu",
        )
        try:
            yield map(prefetcher.release, engine.run(prefetcher))
        finally:
            prefetcher.close()
            reader.close()

    return Workload(
        name=name,
        items=setup.batch_size,
        open=opened,
        max_ahead=MAX_AHEAD,
        ours=True,
        extends=extends,
    )


def _places(plan: Plan | TrackPlan) -> Iterator[tuple[int, int]]:
    return ((epoch, batch) for epoch in itertools.count() for batch in range(plan.batches))


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
