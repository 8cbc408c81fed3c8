import pytest

from benchmarks.cluster import LOCAL, POOL, TCP, measure
from benchmarks.result import Target
from siamusic_fast.bench.report import named


def test_both_kinds_of_dask_are_measured_beside_the_pool() -> None:
    result = measure(tracks=2, windows=1)
    found = result.report.measurements
    assert [one.name for one in found[:3]] == [POOL, LOCAL, TCP]
    ratios = {one.name: one.median for one in result.report.ratios}
    for name in (LOCAL, TCP):
        time, cpu, cost = (f"{of}: {name} / {POOL}" for of in ("time", "CPU seconds", "cost"))
        assert ratios[time] == pytest.approx(named(found, POOL).median / named(found, name).median)
        all_of, all_of_pool = named(found, name).cpu_windows[0], named(found, POOL).cpu_windows[0]
        assert ratios[cpu] == pytest.approx(all_of / all_of_pool)
        own, own_of_pool = (named(found, f"{of}, CPU besides decoding").median for of in (name, POOL))
        assert 0 < own < all_of
        assert ratios[cost] == pytest.approx((all_of_pool - own_of_pool + own) / all_of_pool)
        assert all(result.targets[of] == Target(1.05, at_most=True) for of in (time, cpu, cost))
