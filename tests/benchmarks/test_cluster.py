import pytest

from benchmarks.cluster import LOCAL, POOL, TCP, measure
from siamusic_fast.bench.report import named


def test_both_kinds_of_dask_are_measured_beside_the_pool() -> None:
    result = measure(tracks=2, windows=1)
    found = result.report.measurements
    assert [one.name for one in found[:3]] == [POOL, LOCAL, TCP]
    ratios = {one.name: one.median for one in result.report.ratios}
    for name in (LOCAL, TCP):
        time, cpu = f"time: {name} / {POOL}", f"CPU seconds: {name} / {POOL}"
        assert ratios[time] == pytest.approx(named(found, POOL).median / named(found, name).median)
        assert ratios[cpu] == pytest.approx(
            (named(found, name).cpu_ms or 0) / (named(found, POOL).cpu_ms or 1)
        )
        assert (result.targets[time].value, result.targets[time].at_most) == (1.05, True)
        assert result.targets[cpu] == result.targets[time]
