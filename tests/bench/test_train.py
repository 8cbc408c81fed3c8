import pytest
import torch

from siamusic_fast.bench.timing import Timing
from siamusic_fast.bench.train import PAPER, RESIDENT, WITH_DALI, WITH_TORCH, _flops, _noise, measure
from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet


def test_the_step_is_measured_with_each_loader_and_with_none(shard_set: ShardSet) -> None:
    found = measure(
        shard_set,
        backbone="resnet18",
        mel=MelConfig(seconds=0.25),
        batch_size=4,
        timing=Timing(windows=1, seconds=0.1),
    )
    assert [one.name for one in found.measurements] == [RESIDENT, WITH_DALI, WITH_TORCH, PAPER]
    assert all(one.median > 0 for one in found.measurements)
    assert found.ratios[0].target == 0.98
    reached = found.settings["flops_per_second"] / found.settings["flops_per_pair"]
    assert reached == pytest.approx(found.measurements[0].median)


def test_the_operations_of_a_step_are_those_of_its_layers() -> None:
    # Twice as long an image has twice the convolutions; and a step is forward, and about twice that backward.
    one, two = (_flops("resnet18", _noise((2, 1, 64, frames), torch.device("cpu"))) for frames in (128, 256))
    assert two == pytest.approx(2 * one, rel=0.15)
