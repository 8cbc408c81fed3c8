import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from siamusic_fast.bench.paper import paper_loader
from siamusic_fast.bench.peers import _Statistics, _unlike, fastest
from siamusic_fast.bench.timing import Contender, Timing
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend

CPU = torch.device("cpu")
FRONTEND = Frontend(mel=MelConfig(seconds=0.5), mean=0.0, std=1.0)


@pytest.mark.parametrize("procs", [0, 1])
def test_the_papers_way_passes_over_crops_up_to_the_end_of_an_epoch(tmp_path: Path, procs: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros(30_000, np.float32))
    made = paper_loader([tmp_path / "a.npy"], FRONTEND, recipe="none", batch_size=2, procs=procs)
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


def test_a_setting_that_warms_up_too_slowly_is_not_tried_further() -> None:
    taken = dict.fromkeys(["slow", "fast"], 0)

    def contender(name: str, seconds: float) -> Contender:
        def batches() -> Iterator[None]:
            while True:
                taken[name] += 1
                time.sleep(seconds)
                yield

        return Contender(name=name, items=1, open=lambda: contextlib.nullcontext(batches()))

    slow, fast = contender("slow", 0.1), contender("fast", 0.0)
    assert fastest([slow, fast], CPU, Timing(windows=2, seconds=1e-3)) is fast
    assert taken["slow"] == 2 + 3  # to warm up; with two windows, there would be 6 more
    assert taken["fast"] > 2 + 3 + 6


@pytest.mark.parametrize(("probability", "effect"), [(0.6, 0.3), (0.4, 1.0), (0.05, 1.0)])
def test_what_is_drawn_for_each_batch_alone_is_seldom_taken_for_something_else(
    probability: float, effect: float
) -> None:
    rng = np.random.default_rng(0)
    expected = [probability * effect] * 8
    ours = _Statistics(shape=(1,), moments={"mean": expected})
    alarms = 0
    for _ in range(5_000):
        drawn = effect * (rng.random(64) < probability)
        theirs = _Statistics(shape=(1,), moments={"mean": drawn.tolist()})
        alarms += bool(_unlike(ours, theirs, tolerance=0.15))
    assert alarms <= 5


def test_what_is_not_augmented_at_all_is_told_from_what_is() -> None:
    rng = np.random.default_rng(0)
    drawn = (0.7 * rng.gamma(2.0, 0.5, 64)).tolist()
    augmented = _Statistics(shape=(1,), moments={"mean square between the views": drawn})
    plain = _Statistics(shape=(1,), moments={"mean square between the views": [0.0] * 64})
    assert _unlike(augmented, plain, tolerance=0.15).startswith(
        "has a mean square between the views of 0.000"
    )
