import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from siamusic_fast.config import MelConfig, PretrainConfig, dump, load_pretrain
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import checkpoint
from siamusic_fast.training.job import Job
from siamusic_fast.training.run import CHECKPOINT_PARTS, load_resumable


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = torch.nn.Linear(3, 2)
    checkpoint.save(
        path, "pretraining", {"model": model.state_dict(), "epoch": 3, "ranks": [{"loader": "YQ=="}]}
    )
    loaded = checkpoint.load(path, "pretraining", ())
    assert loaded.keys() == {"model", "epoch", "ranks"}
    assert (loaded["epoch"], loaded["ranks"]) == (3, [{"loader": "YQ=="}])
    torch.testing.assert_close(loaded["model"]["weight"], model.weight.detach(), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "pretraining", {"epoch": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(path, "pretraining", {"epoch": 2, "cannot be pickled": lambda: None})
    assert checkpoint.load(path, "pretraining", ()) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/checkpoint\.pt does not exist"):
        checkpoint.load(tmp_path / "nowhere" / "checkpoint.pt", "pretraining", ())


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_a_cut_off_checkpoint_is_called_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "pretraining", {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged"):
        checkpoint.load(path, "pretraining", ())


def test_a_file_of_another_program_or_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="no pretraining checkpoint of siamusic-fast"):
        checkpoint.load(path, "pretraining", ())
    checkpoint.save(path, "classifier", {})
    with pytest.raises(DataError, match="'siamusic-fast classifier'"):
        checkpoint.load(path, "pretraining", ())


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "siamusic-fast pretraining", "format_version": 99}, path)
    with pytest.raises(DataError, match="version 99, this siamusic-fast reads 2"):
        checkpoint.load(path, "pretraining", ())


def test_a_checkpoint_without_what_is_expected_is_incomplete(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint.pt", "pretraining", {"epoch": 1})
    with pytest.raises(DataError, match="incomplete, it has no encoder, optimizer"):
        checkpoint.load(tmp_path / "checkpoint.pt", "pretraining", ("epoch", "encoder", "optimizer"))


def test_force_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "events.out.tfevents.1", "plots/loss.png"):
        (run / name).write_text("old")
    with pytest.raises(DataError, match="already exists and is not empty"):
        checkpoint.new_folder(run)
    assert list(checkpoint.new_folder(run, force=True).iterdir()) == []
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', which no run has"):
        checkpoint.new_folder(run, force=True)
    assert (run / "thesis.tex").read_text() == "years of work"


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_loading_runs_no_code_that_a_file_brings(tmp_path: Path) -> None:
    torch.save(
        {"format": "siamusic-fast pretraining", "x": Malicious(tmp_path / "made")}, tmp_path / "bad.pt"
    )
    with pytest.raises(DataError, match="damaged or no checkpoint"):
        checkpoint.load(tmp_path / "bad.pt", "pretraining", ())
    assert not (tmp_path / "made").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    assert checkpoint.new_folder(tmp_path / "runs" / "new").is_dir()
    assert checkpoint.new_folder(tmp_path / "runs" / "new").is_dir()
    (tmp_path / "runs" / "new" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists and is not empty: choose another folder with --out"):
        checkpoint.new_folder(tmp_path / "runs" / "new")


def test_settings_of_another_version_are_named(tmp_path: Path, shard_set: ShardSet) -> None:
    values = dump(PretrainConfig())
    assert load_pretrain(values) == PretrainConfig()
    other = {**{name: value for name, value in values.items() if name != "epochs"}, "dropout": 0.5}
    with pytest.raises(DataError, match=r"another siamusic-fast \(dropout unknown; epochs missing\): use"):
        load_pretrain(other)
    with pytest.raises(DataError, match="power unknown"):
        load_pretrain({**values, "mel": {**values["mel"], "power": 2}})
    content = {**dict.fromkeys(CHECKPOINT_PARTS), "config": other}
    checkpoint.save(tmp_path / "checkpoint.pt", "pretraining", content)
    with pytest.raises(ConfigError, match="was started with another epochs, dropout: resume it"):
        load_resumable(tmp_path, PretrainConfig(), shard_set, Job())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"weight_decay = {value:g} must be a number"):
        PretrainConfig(weight_decay=value)
    with pytest.raises(ConfigError, match=f"floor_db = {value:g} must be a number"):
        MelConfig(floor_db=value)
