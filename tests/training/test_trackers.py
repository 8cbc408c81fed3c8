"""Trackers, each read back with its own library, and none of them over a network."""

import os
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import wandb
from matplotlib.image import imsave
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.training import trackers
from siamusic_fast.training.run_log import RunLog, keep_in_trackers, read_log
from siamusic_fast.training.trackers import check_loggers


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it has read the environment of an earlier test


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text('{"lr": 0.5, "splits": ["training"], "mel": {"seconds": 2.0}}')
    imsave(folder / "plots" / "loss.png", np.zeros((4, 6, 3)))
    (folder / "best.pt").write_bytes(b"weights")
    return folder


def log_a_resumed_run(folder: Path, logger: str) -> None:
    """Log steps 10 and 20, then 20 and 30 after a resumption at step 10, and keep what the run has left."""
    with RunLog(folder, (logger,)) as log:
        log.write(10, loss=1.0)
        log.write(20, loss=2.0)
    with RunLog(folder, (logger,), resume_at=10) as log:
        log.write(20, loss=3.0)
        log.write(30, loss=4.0)
    keep_in_trackers(folder, (logger,))


def test_tensorboard_shows_each_step_once_and_the_pictures(run: Path) -> None:
    log_a_resumed_run(run, "tensorboard")
    events = EventAccumulator(str(run))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("loss")] == [(10, 1), (20, 3), (30, 4)]
    (image,) = events.Images("loss")
    assert (image.step, image.width, image.height) == (30, 6, 4)
    (text,) = events.Tensors("config/text_summary")
    assert b'"seconds": 2.0' in text.tensor_proto.string_val[0]


def test_mlflow_goes_on_with_the_same_run_and_keeps_its_files(run: Path) -> None:
    log_a_resumed_run(run, "mlflow")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("siamusic-fast")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == (run / "mlflow.id").read_text()
    assert (found.info.run_name, found.info.status) == ("runs/first", "FINISHED")
    assert found.data.params == {"lr": "0.5", "splits": "['training']", "mel.seconds": "2.0"}
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(10, 1.0), (20, 2.0), (20, 3.0), (30, 4.0)]
    kept = {one.path for folder in ("", "plots") for one in client.list_artifacts(found.info.run_id, folder)}
    assert kept == {"config.json", "metrics.jsonl", "best.pt", "plots", "plots/loss.png"}


def wandb_records(file: Path) -> bytes:
    """Return what the records of a .wandb file hold: a log of LevelDB, which splits them at its blocks."""
    content, place, found = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        found += content[place + 7 : place + 7 + length]
        place += 7 + length
    return found


def test_wandb_goes_on_with_the_same_run_and_keeps_its_files(run: Path, tmp_path: Path) -> None:
    log_a_resumed_run(run, "wandb")
    id_ = (run / "wandb.id").read_text()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{id_}.wandb"))
    assert len(files) == len(list((tmp_path / "wandb").glob("offline-run-*"))) > 0
    content = b"".join(map(wandb_records, files))
    for words in (b"runs/first", b"seconds", b"training", b"loss", f"run-{id_}".encode()):
        assert words in content, words
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/loss_*.png"))


class Broken:
    def __init__(self, run: trackers.TrackedRun) -> None:
        raise ConnectionError("no route\nto host")


class Hanging(Broken):
    def __init__(self, run: trackers.TrackedRun) -> None:
        threading.Event().wait()


def test_a_tracker_that_fails_is_one_warning_and_the_log_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._TRACKERS, "wandb", Broken)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with RunLog(run, ("wandb",)) as log:
            for step in range(3):
                log.write(step, loss=1.0)
                time.sleep(0.01)
    (one,) = (str(warning.message) for warning in found)
    assert one == (
        "the logger wandb failed (ConnectionError: no route to host): it may lack figures of this run, which "
        f"{run / 'metrics.jsonl'} has all of."
    )
    assert len(read_log(run)) == 3


def test_a_tracker_that_hangs_does_not_keep_a_run_from_ending(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._TRACKERS, "mlflow", Hanging)
    monkeypatch.setattr(trackers, "CLOSING_SECONDS", 0.1)
    with (
        pytest.warns(UserWarning, match="the logger mlflow is still sending after 0 s"),
        RunLog(run, ("mlflow",)) as log,
    ):
        log.write(1, loss=1.0)


def test_wandb_without_a_key_asks_nothing_and_is_a_warning(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    words = "no API key: run `wandb login`, or set WANDB_MODE=offline"
    with pytest.warns(UserWarning, match=words), RunLog(run, ("wandb",)) as log:
        log.write(1, loss=1.0)
    keep_in_trackers(run, ("wandb",))  # does not warn again


def test_other_processes_open_no_tracker(run: Path) -> None:
    with RunLog(run, ("wandb", "mlflow", "tensorboard"), active=False) as log:
        log.write(1, loss=1.0)
    assert {path.name for path in run.iterdir()} == {"config.json", "plots", "best.pt"}


def test_a_tracker_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        ConfigError, match=r"'wandb' is not installed: run `pip install 'siamusic-fast\[wandb\]'`"
    ):
        check_loggers(("none", "wandb"))


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_a_logger_is_one_of_those_there_are_or_none_alone(
    config: type[PretrainConfig] | type[FinetuneConfig],
) -> None:
    assert config(logger=("none",)).logger == ("none",)
    with pytest.raises(ConfigError, match=r"logger = 'neptune' is unknown: choose one of tensorboard, wandb"):
        config(logger=("wandb", "neptune"))
    for logger in (("none", "wandb"), ()):
        with pytest.raises(ConfigError, match="must be names of trackers, or none alone"):
            config(logger=logger)
