import tracemalloc

import numpy as np
import pytest

from benchmarks.sizing.order import order, share
from siamusic_fast.pipelines.epoch_order import EpochOrder


def peak_bytes(tracks_per_shard: int, window: int | None) -> int:
    """Return the peak of memory while some batches of an epoch of 1,000 shards are found."""
    counts = np.full(1_000, tracks_per_shard)
    tracemalloc.start()
    try:
        made = EpochOrder(counts, seed=0, window=window)
        for first in np.linspace(0, made.size - 64, 20).astype(np.int64):
            made.tracks(0, np.arange(first, first + 64))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("window", [None, 8])
def test_the_memory_of_the_order_does_not_grow_with_the_tracks(window: int | None) -> None:
    peak_bytes(10, window)
    few, many = peak_bytes(10, window), peak_bytes(1_000_000, window)  # ten thousand tracks, and 10**9
    assert many < few + 20_000


def test_the_order_of_a_hundred_million_tracks_meets_none_twice() -> None:
    made = EpochOrder(np.full(195_313, 512), seed=0)
    for epoch in range(2):
        found = made.tracks(epoch, np.arange(50_000_000, 50_100_000))
        assert len(np.unique(found)) == 100_000
        assert abs(found.mean() / made.size - 0.5) < 4 / np.sqrt(12 * 100_000)


def test_windows_change_with_the_epoch_and_come_back() -> None:
    made = EpochOrder(np.full(40, 8), seed=0, window=4)
    epochs = [made.tracks(epoch, np.arange(320)).tolist() for epoch in (0, 1, 2, 3, 0)]
    assert epochs[0] == epochs[4]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(sorted(epoch) == list(range(320)) for epoch in epochs)


def test_the_rate_of_an_order_is_that_of_its_batches() -> None:
    found = order(10_000, 100, batches=10)
    assert found.rate > 0
    assert found.memory >= 0


@pytest.mark.parametrize(("shards", "processes"), [(100, 7), (30, 16)])
def test_processes_get_equal_numbers_of_batches_and_none_is_idle(shards: int, processes: int) -> None:
    found = share(shards, 64, processes, batch_size=8)
    assert found.fewest == found.most == found.tracks // (8 * processes) > 0
    assert (found.taken, found.twice) == (found.fewest * 8 * processes, 0)
    assert found.tracks - found.taken < 8 * processes
    assert found.fewest_shards >= min(shards, found.fewest)
