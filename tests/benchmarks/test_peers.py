import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper_loader import paper_loader
from benchmarks.peers import Statistics, fastest, unlike
from siamusic_fast.bench.timing import Timing, Workload
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend

FRONTEND = Frontend(mel=MelConfig(seconds=0.5), mean=0.0, std=1.0)


@pytest.mark.parametrize("procs", [0, 1])
def test_the_papers_way_passes_over_crops_up_to_the_end_of_an_epoch(tmp_path: Path, procs: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros(30_000, np.float32))
    made = paper_loader([tmp_path / "a.npy"], FRONTEND, aug="none", batch_size=2, procs=procs)
    with made as loader:
        epoch = iter(loader)
        next(epoch)
        loader.skip(60)
        assert len(list(epoch)) == 64 - 61
        epoch = iter(loader)
        next(epoch)
        loader.skip(100)
        assert list(epoch) == []
        assert len(list(loader)) == 64


def test_the_fastest_setting_is_taken() -> None:
    def workload(name: str, seconds: float) -> Workload:
        def batches() -> Iterator[None]:
            while True:
                time.sleep(seconds)
                yield

        return Workload(name=name, items=1, open=lambda: contextlib.nullcontext(batches()))

    slow, fast = workload("slow", 0.1), workload("fast", 0.0)
    assert fastest([slow, fast], Timing(windows=2, seconds=1e-3)) is fast


@pytest.mark.parametrize(("probability", "effect"), [(0.6, 0.3), (0.4, 1.0), (0.05, 1.0)])
def test_what_is_drawn_for_each_batch_alone_is_seldom_taken_for_something_else(
    probability: float, effect: float
) -> None:
    rng = np.random.default_rng(0)
    expected = [probability * effect] * 8
    ours = Statistics(shape=(1,), moments={"mean": expected})
    alarms = 0
    for _ in range(5_000):
        drawn = effect * (rng.random(64) < probability)
        theirs = Statistics(shape=(1,), moments={"mean": drawn.tolist()})
        alarms += bool(unlike(ours, theirs, tolerance=0.15))
    assert alarms <= 5


def test_what_is_not_augmented_at_all_is_told_from_what_is() -> None:
    rng = np.random.default_rng(0)
    drawn = (0.7 * rng.gamma(2.0, 0.5, 64)).tolist()
    augmented = Statistics(shape=(1,), moments={"mean square between the views": drawn})
    plain = Statistics(shape=(1,), moments={"mean square between the views": [0.0] * 64})
    assert unlike(augmented, plain, tolerance=0.15).startswith("has a mean square between the views of 0.000")
