"""The project's benchmark on a GPU, with sizes that say nothing about speed."""

import pytest

from benchmarks import loader, train
from benchmarks.machine_limits import COPYING_TO_GPU
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import HAND_OVER, READ, prepare
from siamusic_fast.shards.manifest import ShardSet
from tests.bench.test_gpu import DEVICE, MEL, TINY

pytestmark = pytest.mark.gpu


def test_the_loader_is_measured_beside_the_papers_and_what_holds_it_is_said(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=DEVICE, mel=MEL)
    found = loader.measure(setup, ("image", "audio"), TINY).report
    assert {"paper: image", "paper: audio", COPYING_TO_GPU} <= {one.name for one in found.measurements}
    assert {one.name for one in found.measurements if one.limit} == {READ, HAND_OVER}
    for aug in ("image", "audio"):
        assert any(note.startswith(f"what holds DALI: {aug} at ") for note in found.notes)


def test_the_step_is_measured_beside_the_papers_and_what_the_device_multiplies(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=DEVICE, mel=MEL)
    found = train.measure(setup, "image", "resnet18", TINY).report.measurements
    assert all(
        min(named(found, name).windows) > 0
        for name in (train.PAPERS_STEP, train.WITH_PAPER, train.MULTIPLYING)
    )
    achieved = named(found, train.ACHIEVED)
    assert achieved.limit is not None
    assert achieved.limit > achieved.median
