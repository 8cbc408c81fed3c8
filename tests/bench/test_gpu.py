"""The benchmark on a GPU, with sizes that say nothing about speed: everything that is expected is there."""

import pytest
import torch

from siamusic_fast.bench import loader, train
from siamusic_fast.bench.doctor import examine
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import FEATURES, HAND_OVER, PLAN, READ, prepare
from siamusic_fast.bench.timing import Timing, waiting_of
from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
TINY = Timing(windows=2, seconds=0.05)
MEL = MelConfig(seconds=1.0)


def test_every_stage_and_both_engines_are_measured(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=DEVICE, mel=MEL)
    found = loader.measure(setup, ("image", "audio"), TINY).measurements
    stages = [PLAN, READ, HAND_OVER, FEATURES, "DALI: image", "DALI: audio", "torch: image", "torch: audio"]
    assert {*stages} <= {one.name for one in found}
    assert all(min(one.windows) > 0 for one in found)
    for aug in ("image", "audio"):
        assert named(found, f"torch: {aug}").setting.endswith("whole batches on the GPU")


def test_training_is_measured_with_every_loader(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=DEVICE, mel=MEL)
    found = train.measure(setup, "image", "resnet18", TINY).measurements
    fed = [train.WITH_DALI, train.WITH_TORCH]
    rates = [train.RESIDENT, *fed]
    assert {*rates, *map(waiting_of, fed)} == {one.name for one in found}
    assert all(min(named(found, name).windows) > 0 for name in rates)
    assert all(0 <= named(found, waiting_of(name)).median <= 100 for name in fed)


def test_the_doctor_measures_everything_on_the_way_to_the_gpu(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=DEVICE)
    found = examine(setup, "image", "resnet18", 4, TINY)
    assert min(*found.rates.values(), found.fed) > 0
    assert 0 <= found.waiting <= 1
    assert found.device == DEVICE.type
