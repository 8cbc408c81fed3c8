import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torchvision

from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import checkpoint
from siamusic_fast.training.metrics import read_log
from siamusic_fast.training.pretrain import HEALTHY_COLLAPSE, load_run, pretrain

CONFIG = PretrainConfig(mel=MelConfig(seconds=0.5), backbone="resnet18", epochs=2, batch_size=6)


class Interrupt:
    """Progress that stops the work after some steps, as a user does with Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(CONFIG, shard_set, tmp_path_factory.mktemp("runs") / "run").run


def test_a_run_keeps_what_it_was_and_what_it_learnt(run: Path, shard_set: ShardSet) -> None:
    steps_per_epoch = shard_set.tracks(["training"]) // 6
    saved = checkpoint.load(run / "checkpoint.pt", "pretraining", ())
    assert (saved["epoch"], saved["step"]) == (2, 2 * steps_per_epoch)
    assert load_run(run) == (CONFIG, str(shard_set.folder))
    written = json.loads((run / "config.json").read_text())
    assert (written["backbone"], written["mel"]["seconds"]) == ("resnet18", 0.5)
    # The encoder's names are torchvision's: all of its layers but the first and the last take the weights.
    resnet = torchvision.models.resnet18(weights=None)
    fitting = {name: weight for name, weight in saved["encoder"].items() if name != "conv1.weight"}
    missing, unexpected = resnet.load_state_dict(fitting, strict=False)
    assert set(missing) == {"conv1.weight", "fc.weight", "fc.bias"}
    assert unexpected == []


def test_the_log_has_the_end_of_each_epoch(run: Path, shard_set: ShardSet) -> None:
    steps_per_epoch = shard_set.tracks(["training"]) // 6
    lines = read_log(run)
    assert {steps_per_epoch, 2 * steps_per_epoch} <= {line["step"] for line in lines}
    for line in lines:
        assert -1 <= line["loss"] <= 1
        assert 0 <= line["waiting"] <= 1
        assert line["pairs_per_second"] > 0
        assert HEALTHY_COLLAPSE / 2 < line["collapse"] < 2 * HEALTHY_COLLAPSE


def test_a_run_stopped_in_an_epoch_and_resumed_ends_with_the_same_bits(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    steps_per_epoch = shard_set.tracks(["training"]) // 6
    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, shard_set, tmp_path / "stopped", progress=Interrupt(after=steps_per_epoch + 2))
    torch.manual_seed(99)
    result = pretrain(CONFIG, shard_set, tmp_path / "stopped", resume=True)
    assert result.steps == 2 * steps_per_epoch
    whole = checkpoint.load(run / "checkpoint.pt", "pretraining", ())
    resumed = checkpoint.load(tmp_path / "stopped" / "checkpoint.pt", "pretraining", ())
    for part in ("encoder", "projector", "predictor"):
        for name, weight in whole[part].items():
            assert torch.equal(resumed[part][name], weight), f"{part}.{name}"
    assert resumed["ranks"][0]["loader"] == whole["ranks"][0]["loader"]


def test_a_finished_or_different_run_is_not_resumed(run: Path, shard_set: ShardSet) -> None:
    with pytest.raises(DataError, match="all of its 2 epochs"):
        pretrain(CONFIG, shard_set, run, resume=True)
    other = dataclasses.replace(CONFIG, lr=0.5, epochs=9)
    with pytest.raises(ConfigError, match="started with another epochs, lr"):
        pretrain(other, shard_set, run, resume=True)


def test_a_loss_that_becomes_nan_stops_the_run(shard_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"became nan at step 2, .* try --lr 1e\+29"):
        pretrain(dataclasses.replace(CONFIG, lr=1e30), shard_set, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
