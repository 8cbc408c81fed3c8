"""A simulated cluster that packs: what failures cost, by the number of tracks in a shard.

It does what `siamusic_fast.processes.cluster` and Dask's defaults do. A worker does one shard at a time and
gets the next one when it is free. If it dies, another worker begins its shard again, and it comes back after
a while. A shard at which more than `ALLOWED_FAILURES` workers died ends the run. The scheduler takes no time.
"""

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

ALLOWED_FAILURES = 3
"""Default of distributed.scheduler.allowed-failures."""
_SPREAD = 0.1
"""Standard deviation of the logarithm of how fast a worker is."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers, and how they fail."""

    workers: int
    """Workers, each with one thread."""
    seconds_per_track: float
    """Mean time of a worker for a track."""
    hours_between_failures: float
    """Mean time of a worker until it dies; times are exponential."""
    restart_seconds: float = 60.0
    """Time until a worker that died is back."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What became of the time of all workers, as shares of 1 that add up."""

    hours: float
    """Time until the last shard is packed."""
    useful: float
    """At shards that were finished by that worker."""
    lost: float
    """At shards when the worker died."""
    down: float
    """Between a death and a restart."""
    idle: float
    """Without a shard, since none was left to be begun."""
    ending: int
    """Shards at which so many workers died that Dask would have ended the run: the same command goes on."""


def simulate(cluster: Cluster, tracks: int, tracks_per_shard: int, seed: int = 0) -> Run:
    """Pack so many tracks, event by event."""
    rng = np.random.default_rng(seed)
    shards = -(-tracks // tracks_per_shard)
    last = tracks - (shards - 1) * tracks_per_shard
    # Of each shard: its tracks, how many workers died at it, and since when it waits.
    waiting = deque([*[(tracks_per_shard, 0, 0.0)] * (shards - 1), (last, 0, 0.0)])
    speeds = np.exp(rng.normal(0, _SPREAD, cluster.workers))
    speeds /= speeds.mean()
    useful = lost = down = finished = 0.0
    ending = 0
    free: list[tuple[float, int]] = [(0.0, worker) for worker in range(cluster.workers)]
    dying: list[tuple[float, int, int]] = []
    while waiting or dying:
        if dying and (not waiting or dying[0][0] <= free[0][0]):
            died, count, deaths = heapq.heappop(dying)
            waiting.appendleft((count, deaths + 1, died))
            ending += deaths == ALLOWED_FAILURES
            continue
        free_at, worker = heapq.heappop(free)
        count, deaths, since = waiting.popleft()
        begin = max(free_at, since)
        needed = count * cluster.seconds_per_track / float(speeds[worker])
        lives = rng.exponential(3600 * cluster.hours_between_failures)
        # The end of an exponential life does not depend on how long it has lasted.
        if lives < needed:
            lost += lives
            down += cluster.restart_seconds
            heapq.heappush(dying, (begin + lives, count, deaths))
            heapq.heappush(free, (begin + lives + cluster.restart_seconds, worker))
        else:
            useful += needed
            finished = max(finished, begin + needed)
            heapq.heappush(free, (begin + needed, worker))
    total = cluster.workers * finished
    return Run(
        hours=finished / 3600,
        useful=useful / total,
        lost=lost / total,
        down=down / total,
        idle=1 - (useful + lost + down) / total,
        ending=ending,
    )
