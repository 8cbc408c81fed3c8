import contextlib
import dataclasses
import itertools

import pytest
import torch

from benchmarks import peers, train
from benchmarks.train import ACHIEVED, MULTIPLYING, PAPERS_STEP, WITH_PAPER, measure, papers_step, step_flops
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import prepare
from siamusic_fast.bench.train import RESIDENT, noise
from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet
from tests.bench.test_train import CPU, TINY


def test_the_papers_loader_and_step_are_measured_beside_the_peak(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_COMPARED_PAIRS", 32)
    # The process of its own is started in the next test.
    nothing = contextlib.nullcontext(itertools.repeat(None))
    monkeypatch.setattr(train, "papers_step", lambda *arguments: nothing)
    setup = prepare(shard_set, batch_size=4, device=CPU, mel=MelConfig(seconds=0.25))
    result = measure(setup, "image", "resnet18", TINY)
    found = result.report
    beside = f"{RESIDENT}, beside the paper's"
    assert {beside, WITH_PAPER, PAPERS_STEP, MULTIPLYING, ACHIEVED} <= {
        one.name for one in found.measurements
    }
    assert result.targets == {}  # set for ResNet-50 on a GPU
    achieved, resident = (named(found.measurements, name) for name in (ACHIEVED, beside))
    assert achieved.median * 1e12 / found.settings["flops_per_pair"] == pytest.approx(resident.median)
    ratios = {one.name: one.median for one in found.ratios}
    share = achieved.median / named(found.measurements, MULTIPLYING).median
    assert ratios[f"{ACHIEVED} / {MULTIPLYING}"] == pytest.approx(share)
    assert ratios[f"{WITH_PAPER} / {beside}"] > 0


def test_training_on_a_gpu_has_targets(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=CPU)
    on_gpu = dataclasses.replace(setup, device=torch.device("cuda", 0))
    found = train.targets(on_gpu, "resnet50", "resident")
    assert {target.value for target in found.values()} == {0.98, 3.0}
    assert train.targets(on_gpu, "resnet18", "resident") == train.targets(setup, "resnet50", "resident") == {}


def test_a_process_that_dies_is_an_error_and_no_hang(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=2, device=CPU, mel=MelConfig(seconds=0.25))
    with (
        papers_step("no such backbone", setup) as steps,
        pytest.raises(RuntimeError, match="the process of the paper's step ended"),
    ):
        next(steps)


def test_the_operations_of_a_step_are_those_of_its_layers() -> None:
    # Twice as long an image has twice the convolutions; and a step is forward, and about twice that backward.
    one, two = (step_flops("resnet18", noise((2, 1, 64, frames), CPU)) for frames in (128, 256))
    assert two == pytest.approx(2 * one, rel=0.15)
