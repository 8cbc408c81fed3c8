from pathlib import Path
from typing import Any

import pytest
import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.loader import _check_alike, measure
from siamusic_fast.bench.stages import dali_loader
from siamusic_fast.bench.timing import Contender, Timing
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.manifest import ShardSet

MEL = MelConfig(seconds=1.0)
QUICK = Timing(windows=1, seconds=0.05)


def test_every_stage_and_every_peer_is_measured(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, threads=1, timing=QUICK)
    names = [one.name for one in found.measurements]
    assert names[:4] == ["DALI: read", "DALI: read and crop", "DALI: features alone", "DALI: recipe image"]
    assert [name.split(":")[0] for name in names[4:]] == ["torch", "paper's way"]
    assert all(one.median > 0 and one.cpu_ms is not None for one in found.measurements)
    assert [(one.name.split(" / ")[1].split(":")[0], one.target) for one in found.ratios] == [
        ("DALI", 0.6),
        ("torch", 1.3),
        ("paper's way", None),
    ]
    assert found.limits["DALI: read and crop"] > 0


def test_a_recipe_without_a_peer_is_measured_alone(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["mask,hflip"], peers=["paper"], mel=MEL, batch_size=4, timing=QUICK)
    assert found.measurements[-1].name == "DALI: recipe mask,hflip"


def test_a_peer_that_makes_something_else_is_our_mistake(shard_set: ShardSet) -> None:
    options: Any = {"mel": MEL, "batch_size": 4, "normalisation": Normalisation(0.0, 1.0)}
    ours = dali_loader(shard_set, options, "none")
    louder = Contender(
        name="louder",
        items=4,
        open=lambda: two_view_loader(
            "torch", shard_set, recipe="none", **{**options, "normalisation": Normalisation(-20.0, 1.0)}
        ),
    )
    _check_alike(ours, ours, "none")
    with pytest.raises(RuntimeError, match=r"louder makes .* it is no peer for recipe none"):
        _check_alike(ours, louder, "none")


def test_shards_made_to_measure_with_are_read_like_any_others(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "shards", tracks=3)
    with TrackLoader(made, crops=2) as loader:
        ((mels, labels),) = list(loader)
    assert mels.shape == (3, 2, 1, 48, 431)
    assert labels.tolist() == [0, 1, 0]


def test_limits_are_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 2**20))
    assert limits.memory_copy() > 1e8
    assert limits.crop_copy([path], 1000, count=50) > 0
    assert limits.disk_read([path]).bytes_per_second > 1e6
    assert limits.matmul(torch.device("cpu"), torch.float32) > 1e8


def test_an_unknown_backend_is_refused_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="'jax' is unknown: choose one of dali, torch"):
        two_view_loader("jax", shard_set, recipe="none")
