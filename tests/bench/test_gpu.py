"""The benchmark on a GPU, with sizes that say nothing about speed: everything that is expected is there."""

from typing import Any

import pytest
import torch

from siamusic_fast.bench import limits, loader, train
from siamusic_fast.bench.doctor import examine
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import HAND_OVER, PLAN, READ, of_plan, of_recipe
from siamusic_fast.bench.timing import Timing, waiting_of
from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
QUICK: dict[str, Any] = {"batch_size": 4, "device": DEVICE, "timing": Timing(windows=2, seconds=0.05)}
MEL = MelConfig(seconds=1.0)
RECIPES = ("image", "audio")
FROM_THE_BUS = [limits.TO_GPU] if DEVICE.type == "cuda" else []


def test_every_stage_every_peer_and_every_limit_is_measured(shard_set: ShardSet) -> None:
    found = loader.measure(shard_set, recipes=RECIPES, mel=MEL, **QUICK)
    stages = [PLAN, READ, HAND_OVER, *map(of_recipe, ("none", *RECIPES)), *map(of_plan, RECIPES)]
    beside = [
        name
        for recipe in RECIPES
        for name in (
            f"DALI: recipe {recipe}, beside its peers",
            f"torch: recipe {recipe}",
            f"paper's way: recipe {recipe}",
        )
    ]
    bounds = [limits.COPYING_CROPS, limits.COPYING, *FROM_THE_BUS]
    assert {*stages, *bounds, *beside} <= {one.name for one in found.measurements}
    assert all(min(one.windows) > 0 for one in found.measurements)
    for recipe in RECIPES if DEVICE.type == "cuda" else ():
        batches = named(found.measurements, f"torch: recipe {recipe}")
        assert batches.setting.endswith("whole batches on the GPU")
    assert set(found.limits) == {READ, HAND_OVER}
    assert min(found.limits.values()) > 0


def test_training_is_measured_with_every_loader_and_beside_what_the_device_multiplies(
    shard_set: ShardSet,
) -> None:
    found = train.measure(shard_set, backbone="resnet18", mel=MEL, **QUICK)
    fed = [train.WITH_DALI, train.WITH_TORCH, train.WITH_PAPER]
    rates = [train.RESIDENT, *fed, train.PAPER, limits.MULTIPLYING, train.ACHIEVED]
    assert {*rates, *map(waiting_of, fed)} <= {one.name for one in found.measurements}
    assert all(min(named(found.measurements, name).windows) > 0 for name in rates)
    assert all(0 <= named(found.measurements, waiting_of(name)).median <= 100 for name in fed)
    assert found.limits[train.RESIDENT] > named(found.measurements, train.RESIDENT).median


def test_the_doctor_measures_everything_on_the_way_to_the_gpu(shard_set: ShardSet) -> None:
    found = examine(shard_set, recipe="image", backbone="resnet18", **QUICK)
    rates = [
        *(found.training, found.loader, found.together, found.fed, found.plan, found.read),
        *(found.handed_over, found.features, found.by_cpu, found.disk),
    ]
    assert min(rates) > 0
    assert 0 <= found.waiting <= 1
    assert found.device == DEVICE.type
