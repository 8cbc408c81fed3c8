"""The order of an epoch and its batches over many processes, without any shards: they are made up."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.process import forget_peak, mebibytes
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.epoch_order import EpochOrder
from siamusic_fast.pipelines.plan import Plan
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.shards.manifest import Shard, ShardSet

_RATE = 22_050
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """What the tracks of batches of 64 took to be found, at places all over an epoch."""

    rate: float
    """Batches per second."""
    memory: float
    """MiB that the process has more at the peak."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """How the processes of a training share an epoch."""

    fewest: int
    """Batches of the process that has the fewest."""
    most: int
    """Batches of the process that has the most."""
    tracks: int
    """Tracks of the shard set."""
    taken: int
    """Different tracks that the processes take."""
    twice: int
    """Tracks that are taken more than once."""
    fewest_shards: int
    """Shards that the process reads from that reads from the fewest."""


def order(tracks: int, tracks_per_shard: int, window: int | None = None, batches: int = 2_000) -> Ordered:
    """Find the tracks of some batches of an epoch, evenly spaced, in the order of a loader."""
    counts = np.full(-(-tracks // tracks_per_shard), tracks_per_shard)
    EpochOrder(counts[:2], seed=0).tracks(0, np.arange(_BATCH))
    before = mebibytes("VmHWM")
    forget_peak()
    before = mebibytes("VmHWM")
    started = time.perf_counter()
    made = EpochOrder(counts, seed=0, window=window)
    for first in np.linspace(0, made.size - _BATCH, batches).astype(np.int64):
        made.tracks(1, np.arange(first, first + _BATCH))
    seconds = time.perf_counter() - started
    return Ordered(rate=batches / seconds, memory=mebibytes("VmHWM") - before)


def share(shards: int, tracks_per_shard: int, processes: int, batch_size: int = _BATCH) -> Shared:
    """Make every batch of an epoch in every process.

    Shards have `tracks_per_shard` tracks or up to a fifth fewer.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(tracks_per_shard * 4 // 5, tracks_per_shard + 1, shards)
    tracks = imagined_tracks(counts.tolist())
    frontend = Frontend(mel=MelConfig(), mean=0.0, std=1.0)
    times = np.zeros(len(tracks), np.uint8)
    batches, shards_of = [], []
    for rank in range(processes):
        plan = Plan(tracks, frontend, batch_size=batch_size, rank=rank, world_size=processes)
        met = np.zeros(shards, bool)
        for number in range(plan.batches):
            taken = plan.batch((0, number)).tracks
            np.add.at(times, taken, 1)
            met[tracks.shard[taken]] = True
        batches.append(plan.batches)
        shards_of.append(int(met.sum()))
    return Shared(
        fewest=min(batches),
        most=max(batches),
        tracks=len(tracks),
        taken=int((times > 0).sum()),
        twice=int((times > 1).sum()),
        fewest_shards=min(shards_of),
    )


def imagined_tracks(counts: list[int]) -> Tracks:
    """Return tracks of 30 s in so many shards as there are `counts`, none of which is on disk."""
    shards = tuple(
        Shard(
            file=f"training-{number:06d}.tar",
            index=f"training-{number:06d}.idx",
            tracks=count,
            bytes=count,
            sha256="",
            index_sha256="",
            labelled=False,
            shortest=30 * _RATE,
            longest=30 * _RATE,
        )
        for number, count in enumerate(counts)
    )
    shard_set = ShardSet(
        folder=Path("imagined"),
        source="imagined",
        codec="wav",
        sample_rate=_RATE,
        classes=(),
        tags=(),
        seed=0,
        min_seconds=0.0,
        splits={"training": shards},
        rejected={},
    )
    zeros = np.zeros(sum(counts), np.int64)
    return Tracks(
        shard_set=shard_set,
        shards=shards,
        shard=np.repeat(np.arange(len(counts)), counts),
        index_in_shard=zeros,
        offset=zeros,
        size=zeros,
        cls_offset=zeros,
        samples=np.full(len(zeros), 30 * _RATE),
    )
