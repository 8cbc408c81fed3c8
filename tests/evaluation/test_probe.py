import functools
import json
from pathlib import Path

import pytest
import torch
import torchvision

from siamusic_fast.config import Architecture
from siamusic_fast.evaluation.probe import activate_branches, as_json, probe, random_encoder
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet


def test_an_encoder_that_learnt_nothing_is_as_good_as_the_initial_one(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    # The run's encoder is what seed 0 makes of it, and so is the initial one beside it.
    random = torch.get_rng_state()
    result = probe(pretrained, shard_set, tmp_path / "out", seed=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert result.pretrained == result.initial
    assert result.gain == result.initial.linear.accuracy - result.random.linear.accuracy
    assert result.random.linear.tracks == shard_set.tracks(["test"], labelled_only=True)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["random"]["linear"]["accuracy"] == result.random.linear.accuracy
    assert written["epoch"] == 3


def test_a_random_encoder_is_torchvisions_but_for_the_first_and_last_layer() -> None:
    ours = activate_branches(random_encoder(Architecture("resnet18"), 7, torch.device("cpu"))).state_dict()
    torch.manual_seed(7)
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    for name in ours.keys() - {"conv1.weight"}:
        assert torch.equal(ours[name], theirs[name]), name


def of_every_rank(pretrained: Path, shard_set: ShardSet, *, world: World) -> list[dict[str, object]]:
    return world.gather(as_json(probe(pretrained, shard_set, seed=1, world=world)))


@pytest.mark.slow
def test_processes_share_the_tracks_of_a_probe(pretrained: Path, shard_set: ShardSet) -> None:
    alone = as_json(probe(pretrained, shard_set, seed=1))
    work = functools.partial(of_every_rank, pretrained, shard_set)
    assert launch(work, gpus=0, procs=2) == [alone, alone]
