import math

import pytest

from benchmarks.sizing.cluster import Cluster, simulate


def cluster(workers: int, hours: float, seconds_per_track: float = 0.1) -> Cluster:
    return Cluster(workers=workers, seconds_per_track=seconds_per_track, hours_between_failures=hours)


def test_one_worker_without_failures_takes_the_time_of_all_tracks() -> None:
    found = simulate(cluster(1, 1e9), 1_000, 512)
    assert found.hours == pytest.approx(100 / 3600)
    assert found.useful == pytest.approx(1)
    assert found.lost == found.down == found.ending == 0


def test_what_failures_cost_is_what_theory_says() -> None:
    # With failures at rate f, a job of d seconds that begins anew each time takes (exp(f d) - 1) / f.
    seconds, mean_life = 51.2, 180.0
    found = simulate(cluster(1, mean_life / 3600), 512 * 4_000, 512)
    attempts = math.exp(seconds / mean_life)
    assert found.lost / found.useful == pytest.approx((attempts - 1) * mean_life / seconds - 1, rel=0.15)
    assert found.down / found.useful == pytest.approx((attempts - 1) * 60 / seconds, rel=0.1)


@pytest.mark.parametrize("hours", [0.2, 1.0])
def test_large_shards_lose_more_and_leave_more_workers_idle(hours: float) -> None:
    small, large = (simulate(cluster(100, hours), 400_000, size) for size in (128, 4_096))
    assert small.lost < large.lost
    assert small.idle < large.idle
    assert small.hours < large.hours
    for found in (small, large):
        assert found.useful + found.lost + found.down + found.idle == pytest.approx(1)
        assert found.idle >= 0


def test_more_failures_lose_more() -> None:
    lost = [simulate(cluster(50, hours), 200_000, 512).lost for hours in (0.1, 1.0, 10.0)]
    assert lost == sorted(lost, reverse=True)
    assert lost[2] > 0


def test_shards_longer_than_the_life_of_a_worker_end_the_run() -> None:
    assert simulate(cluster(10, 0.01), 10_000, 1_000).ending > 0
    assert simulate(cluster(10, 10.0), 10_000, 1_000).ending == 0
