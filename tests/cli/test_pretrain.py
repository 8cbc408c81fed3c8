import dataclasses
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from siamusic_fast.analysis import plots
from siamusic_fast.cli import main
from siamusic_fast.cli.pretrain import training_progress
from siamusic_fast.config import PRESETS, Architecture, FinetuneConfig, PretrainConfig, dump, from_preset
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.models import checkpoint
from siamusic_fast.models import networks as models
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import pretrain as training
from siamusic_fast.training import run_log
from siamusic_fast.training.pretrain import TASK, PretrainResult
from siamusic_fast.training.run_log import healthy_collapse
from tests.training.networks import TinyEncoder

SMALL = {"backbone": "resnet18", "batch-size": 2, "epochs": 2, "mel": {"seconds": 0.5}}


class Calls:
    """Stands in for `training.pretrain`: notes what it was called with, and does as it is told."""

    def __init__(self) -> None:
        self.config = PretrainConfig()
        self.out = Path()
        self.options: dict[str, Any] = {}
        self.kept: list[tuple[Path, tuple[str, ...]]] = []
        self.error: BaseException | None = None
        self.saves = False

    def __call__(self, config: PretrainConfig, shard_set: ShardSet, out: Path, **options: Any) -> Any:
        self.config, self.out, self.options = config, out, options
        if self.saves:
            out.mkdir()
            (out / "checkpoint.pt").touch()
        if self.error:
            raise self.error
        figures = {"loss": -0.5, "collapse": 0.02, "pairs_per_second": 1.0, "waiting": 0.0, "seconds": 1.0}
        return PretrainResult(
            run=out, epochs=1, steps=1, healthy_collapse=HEALTHY, peak_memory=2**30, **figures
        )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    found = Calls()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "pretrain", found)
    monkeypatch.setattr(plots, "pretraining", lambda run: None)
    monkeypatch.setattr(run_log, "keep_in_trackers", lambda run, loggers: found.kept.append((run, loggers)))
    return found


def call(shard_set: ShardSet, *arguments: object) -> Result:
    words = ("pretrain", "--data", shard_set.folder, "--gpus", 0, "--quiet", *arguments)
    return CliRunner().invoke(main, [str(word) for word in words])


def yaml(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items()))
    return path


def test_the_recipe_of_chen_and_he_follows_the_batch(calls: Calls, shard_set: ShardSet) -> None:
    result = call(shard_set, "--preset", "simsiam", "--batch-size", 16, "--grad-accum-steps", 32)
    assert result.exit_code == 0, result.output
    config = calls.config
    # Section 3: SGD with momentum 0.9 and weight decay 1e-4, lr = 0.05 x 512 / 256, cosine decay.
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 1e-4)
    assert config.lr == pytest.approx(0.1)
    assert (config.schedule, config.fixed_predictor_lr) == ("cosine", True)


def test_the_rate_of_chen_and_he_follows_a_batch_that_shrinks_to_the_tracks(
    calls: Calls, shard_set: ShardSet
) -> None:
    assert shard_set.tracks(["training"]) == 24
    call(shard_set, "--preset", "simsiam", "--batch-size", 128)
    assert calls.config.lr == pytest.approx(0.05 * 24 / 256)
    of_two_processes = from_preset("simsiam", 2, 24, batch_size=128, grad_accum_steps=3)
    assert of_two_processes.lr == pytest.approx(0.05 * 2 * 12 * 3 / 256)


def test_the_preset_music_is_the_default_and_the_papers_is_a_word_away(
    calls: Calls, shard_set: ShardSet
) -> None:
    call(shard_set)
    music = calls.config
    assert music == PretrainConfig()
    assert music.method == "simsiam"
    call(shard_set, "--preset", "music", "--aug", "image")
    assert calls.config == dataclasses.replace(music, aug="image")
    call(shard_set, "--preset", "paper")
    paper = calls.config  # section 4: Adam, weight decay 1e-5; Table 1; torchvision's ResNet-50
    assert (paper.optimizer, paper.weight_decay, paper.schedule) == ("adam", 1e-5, "constant")
    assert (paper.aug, paper.crops, paper.normalization) == ("image", "same", "global")
    assert paper.architecture == Architecture("resnet50")
    call(shard_set, "--preset", "paper", "--aug", "audio", "--method", "vicreg")
    assert calls.config == dataclasses.replace(paper, aug="audio", method="vicreg")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("epochs", [1, 2])
def test_every_preset_trains_for_any_number_of_epochs_with_any_crops_and_backbone(
    calls: Calls, shard_set: ShardSet, preset: str, epochs: int
) -> None:
    options = ("--crops", "same", "--epochs", epochs, "--backbone", "swin_t", "--seconds", 2)
    result = call(shard_set, "--preset", preset, *options)
    assert result.exit_code == 0, result.output
    assert (calls.config.crops, calls.config.epochs) == ("same", epochs)
    assert calls.config.method == "simsiam"


def test_a_file_beats_the_recipe_and_the_command_line_beats_the_file(
    calls: Calls, shard_set: ShardSet, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "preset: simsiam\nlr: 1e-2\nweight-decay: 0.5\nsync_batchnorm: off\nsplits: [training, test]\n"
        "mel:\n  seconds: 2\n  n_mels: 64\nout: here\nknn_every: null\n"
    )
    result = call(shard_set, "--config", path, "--lr", 0.3, "--n-mels", 80)
    assert result.exit_code == 0, result.output
    config = calls.config
    assert (config.optimizer, config.weight_decay, config.lr) == ("sgd", 0.5, 0.3)
    assert (config.mel.seconds, config.mel.n_mels, config.mel.sample_rate) == (2.0, 80, 22_050)
    assert (config.sync_batchnorm, config.splits, config.knn_every) == (False, ("training", "test"), 5)
    assert calls.out == Path("here")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("epoch: 3", 1, "sets 'epoch', which is no option: did you mean epochs?"),
        ("mel: {n_mel: 3}", 1, "sets 'n_mel', which is no option: did you mean n_mels?"),
        ("- 3", 1, "holds no settings: write one `name: value` per line"),
        ("lr: [", 1, "is not YAML"),
        ("epochs: 2.5", 2, "'2.5' is not a valid integer"),
        ("lr: -1", 1, "lr = -1 must be a number above 0"),
        ("optimizer: lamb", 1, "optimizer = 'lamb' is unknown: choose one of adam, adamw, sgd"),
    ],
)
def test_a_file_that_cannot_be_is_one_error(
    calls: Calls, shard_set: ShardSet, tmp_path: Path, text: str, code: int, words: str
) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    result = call(shard_set, "--config", tmp_path / "settings.yaml")
    assert result.exit_code == code
    assert words in result.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(
    calls: Calls, shard_set: ShardSet, number: int, code: int, tmp_path: Path
) -> None:
    calls.error = Stopped(number)
    result = call(shard_set, "--out", "run")
    assert (result.exit_code, result.output) == (
        code,
        "Stopped before the first checkpoint: run cannot be resumed.\n",
    )
    calls.saves = True
    result = call(shard_set, "--out", "run", "--procs", 1)
    assert result.output.endswith("go on with: siamusic-fast pretrain --resume run --gpus 0 --procs 1\n")


def test_auto_goes_on_with_what_was_stopped_and_starts_otherwise(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "encoder", TinyEncoder)
    path = yaml(tmp_path, **{**SMALL, "knn-every": 0, "resume": "auto", "json": True})
    real = training.pretrain

    def stop_in_the_middle(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **{**options, "progress": Stopping(9)})

    with monkeypatch.context() as patch:
        patch.setattr(training, "pretrain", stop_in_the_middle)
        assert call(shard_set, "--config", path).exit_code == 143
    [run] = (tmp_path / "runs").iterdir()
    refused = call(shard_set, "--resume", "auto", "--lr", 0.5)
    assert refused.exit_code == 1
    assert "was started with another lr" in refused.output
    result = call(shard_set, "--config", path)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["run"], values["steps"]) == (str(run.relative_to(tmp_path)), 24)
    assert list((tmp_path / "runs").iterdir()) == [run]
    # What the run was in the end can be fed back, and makes the same run again.
    again = call(shard_set, "--config", run / "config.json", "--out", "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "config.json").read_text() == (run / "config.json").read_text()
    first, second = (torch.load(r / "checkpoint.pt", weights_only=True) for r in (run, tmp_path / "again"))
    for name, weight in first["encoder"].items():
        assert torch.equal(second["encoder"][name], weight), name


@pytest.mark.parametrize("newest_is_there", [True, False])
def test_a_run_whose_last_checkpoint_is_lost_is_still_a_run_to_go_on_with(
    calls: Calls, shard_set: ShardSet, tmp_path: Path, newest_is_there: bool
) -> None:
    content = {"epoch": 1, "data": str(shard_set.folder), "ranks": [{}]}
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    old = PretrainConfig(lr=0.125)
    checkpoint.save(run / "checkpoint-previous.pt", "pretraining", {**content, "config": dump(old)})
    if newest_is_there:
        (run / "checkpoint.pt").write_bytes(b"damaged")
    for words in (("auto",), ("auto", "--out", "runs/first"), ("runs/first",)):
        calls.options.clear()
        assert call(shard_set, "--resume", *words).exit_code == 0
        assert (calls.out, calls.config, calls.options["resume"]) == (Path("runs/first"), old, True)
    calls.error = Stopped(signal.SIGTERM)
    assert "first has a checkpoint; go on with" in call(shard_set, "--resume", "runs/first").output
    (run / "checkpoint-previous.pt").write_bytes(b"damaged")
    refused = call(shard_set, "--resume", "runs/first")
    state = "is damaged" if newest_is_there else "does not exist"
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"error: runs/first/checkpoint.pt {state}" in refused.stderr


def test_a_run_goes_on_in_other_processes_with_as_many_pairs_together(
    calls: Calls, shard_set: ShardSet, tmp_path: Path
) -> None:
    run, old = tmp_path / "run", PretrainConfig(batch_size=4)
    run.mkdir()
    content = {"epoch": 1, "data": str(shard_set.folder), "config": dump(old)}
    checkpoint.save(run / "checkpoint.pt", "pretraining", {**content, "ranks": 4 * [{}]})
    result = call(shard_set, "--resume", "run", "--procs", 1)
    assert result.exit_code == 0, result.output
    assert calls.config == dataclasses.replace(old, batch_size=16, sync_batchnorm=True)
    assert call(shard_set, "--resume", "auto", "--out", "run", "--batch-size", 5).exit_code == 0
    assert calls.config.batch_size == 5  # which `pretrain` compares with the run
    refused = call(shard_set, "--resume", "run", "--procs", 3)
    assert refused.exit_code == 1
    assert "batches of 4 x 4 = 16, which 3 processes cannot share" in refused.stderr
    assert "--procs 2 on the CPU" in refused.stderr


class Stopping:
    """Progress that sends this process SIGTERM after some steps of training."""

    def __init__(self, after: int) -> None:
        self.left = after

    def task(self, description: str, total: int, unit: str = "") -> Any:
        self.counts = description == TASK
        return self

    def __enter__(self) -> "Stopping":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self.left -= steps * self.counts
        if self.left == 0 and self.counts:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_abandoned_run_in_the_folder_is_started_over_by_auto_alone(
    calls: Calls, shard_set: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    settings = tmp_path / "run" / "config.json"
    settings.write_text(json.dumps({**dump(PretrainConfig()), "data": "fma_small", "processes": 1}))
    call(shard_set, "--out", "run", "--resume", "auto")
    assert (calls.options["resume"], calls.options["force"]) == (False, True)
    calls.options = {}
    assert "already exists" in call(shard_set, "--out", "run").output
    with FolderLock() as lock:  # it has just been started and has no checkpoint yet
        lock.take(tmp_path / "run")
        assert "already exists" in call(shard_set, "--out", "run", "--resume", "auto").output
    (tmp_path / "run" / "best.pt").touch()  # of a run whose last checkpoint was taken away
    assert "already exists" in call(shard_set, "--out", "run", "--resume", "auto").output
    (tmp_path / "run" / "best.pt").unlink()
    settings.write_text(json.dumps(dump(FinetuneConfig())))
    assert "already exists" in call(shard_set, "--out", "run", "--resume", "auto").output
    assert calls.options == {}


def test_torchrun_with_restarts_needs_the_name_of_the_run(
    calls: Calls, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    refused = call(shard_set)
    assert refused.exit_code == 1
    assert "name the run with --out" in refused.stderr
    assert call(shard_set, "--out", "run").exit_code == 0


def test_a_recipe_that_is_typed_beats_the_settings_of_an_earlier_run(
    calls: Calls, shard_set: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**dump(PretrainConfig(lr=0.5, epochs=7)), "processes": 1})
    )
    result = call(shard_set, "--config", tmp_path / "config.json", "--preset", "simsiam", "--momentum", 0.5)
    assert result.exit_code == 0, result.output
    config = calls.config
    assert (config.optimizer, config.schedule, config.weight_decay) == ("sgd", "cosine", 1e-4)
    assert config.lr == pytest.approx(0.05 * 24 / 256)
    assert (config.momentum, config.epochs) == (0.5, 7)


def test_a_batch_that_cannot_be_is_named_before_the_rate_that_follows_from_it(
    calls: Calls, shard_set: ShardSet
) -> None:
    result = call(shard_set, "--preset", "simsiam", "--batch-size", 0)
    assert (result.exit_code, result.output) == (
        1,
        "error: batch_size = 0 must be at least 2: batch norm needs two samples.\n",
    )


HEALTHY = healthy_collapse(PretrainConfig().width)
VALUES = {
    "epoch": 2,
    "step": 12,
    "steps": 40,
    "loss": -0.75,
    "collapse": HEALTHY,
    "encoder_rank": 21.5,
    "projector_rank": 40.25,
    "highest_rank": 63,
    "lr": 0.001,
    "pairs_per_second": 1234.5,
    "waiting": 0.125,
    "peak_memory": 3 * 2**30,
}


def test_a_terminal_shows_every_figure_in_one_panel_and_warns_of_a_collapse() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, color_system=None)
    show = training_progress(quiet=False, config=PretrainConfig(epochs=5), screen=terminal)
    with show.task(TASK, 40, "steps") as task:
        task.advance(12, values=VALUES)
        task.advance(0, values={"knn": 0.625})
        time.sleep(0.3)  # until it is drawn
        shown = screen.getvalue().rsplit(TASK, 1)[1]
    figures = ("epoch 2/5", "step 12/40", "-0.7500", "0.0221 (healthy 0.0221)", "0.001", "1,234.5", "12%")
    for words in (*figures, "3.00 GiB", "62.5%", "left"):
        assert words in shown, words
    assert "collapsing" not in shown
    assert "low rank" not in shown
    with show.task(TASK, 40, "steps") as task:
        task.advance(12, values={**VALUES, "collapse": HEALTHY / 6})
        time.sleep(0.3)
        assert "collapsing" in screen.getvalue().rsplit(TASK, 1)[1]
    for rank, highest, warned in ((7.5, 63, True), (8.5, 63, False), (2.0, 3, False), (0.7, 3, True)):
        with show.task(TASK, 40, "steps") as task:
            task.advance(12, values={**VALUES, "encoder_rank": rank, "highest_rank": highest})
            time.sleep(0.3)
            assert ("low rank" in screen.getvalue().rsplit(TASK, 1)[1]) == warned


@pytest.mark.parametrize("quiet", [False, True])
def test_processes_that_train_together_get_what_shows_their_figures(quiet: bool) -> None:
    shown = pickle.loads(pickle.dumps(training_progress(quiet, PretrainConfig())))
    with shown.task(TASK, 40, "steps") as task:
        task.advance(10, values=VALUES)


def test_a_pipe_gets_lines_now_and_then_and_all_news(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(quiet=False, config=PretrainConfig(epochs=5)).task(TASK, 40, "steps") as task:
        task.advance(10, values=VALUES)
        task.advance(10, values=VALUES)  # soon after the first, and nothing new
        task.advance(10, values={**VALUES, "collapse": 0.001})
        task.advance(0, values={"knn": 0.625})
        task.advance(10, values={**VALUES, "loss": -1.0})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    pattern = (
        r"Pre-training: epoch 2/5, step 12/40, loss -0\.7500, collapse 0\.0221 \(healthy 0\.0221\), "
        r"lr 0\.001, rank 21\.5 of the encoder, 40\.2 of the projector, "
        r"1,234\.5 pairs/s, 12% waiting for data, peak 3\.00 GiB, 0:00:0\d left"
    )
    assert re.fullmatch(pattern, lines[0])
    assert "collapsing" in lines[1]
    assert "kNN 62.5%" in lines[2]
    assert "loss -1.0000" in lines[3]


@pytest.mark.slow
@pytest.mark.parametrize("procs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_real_process_that_is_killed_and_resumed_ends_with_the_same_bits(
    shard_set: ShardSet, tmp_path: Path, number: int, procs: int
) -> None:
    path = yaml(tmp_path, **{**SMALL, "data": str(shard_set.folder), "gpus": 0, "procs": procs})
    program = (sys.executable, "-m", "siamusic_fast", "pretrain")
    start = (*program, "--config", str(path), "--checkpoint-minutes", "1e-9")
    subprocess.run([*start, "--out", tmp_path / "whole"], check=True, capture_output=True, timeout=_PATIENCE)
    run = tmp_path / "stopped"
    process = subprocess.Popen([*start, "--out", run], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (run / "checkpoint.pt").is_file() and _steps(run) >= 2, process)
    process.send_signal(number)
    _, words = process.communicate(timeout=_PATIENCE)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), words
    wait_until(lambda: not _children(run))  # those of a launcher that was killed save and end
    resume = (*program, "--resume", run, "--gpus", "0", "--procs", str(procs))
    subprocess.run(resume, check=True, capture_output=True, timeout=_PATIENCE)
    first, second = (torch.load(tmp_path / r / "checkpoint.pt", weights_only=True) for r in ("whole", run))
    assert first["step"] == second["step"]
    for part in ("encoder", "projector", "predictor"):
        for name, weight in first[part].items():
            assert torch.equal(second[part][name], weight), name


_PATIENCE = 180.0
"""Seconds that a test waits for a process."""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Return when `condition` holds; fail if it takes too long, or if `process` ends before."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


def _steps(run: Path) -> int:
    """Return the step of the last checkpoint."""
    step: int = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    return step


def test_the_trackers_that_are_named_get_the_pictures_of_the_run(shard_set: ShardSet, calls: Calls) -> None:
    result = call(shard_set, "--logger", "tensorboard,mlflow", "--out", "run")
    assert result.exit_code == 0, result.output
    assert calls.kept == [(Path("run"), ("tensorboard", "mlflow"))]


def _children(run: Path) -> list[str]:
    """Return the processes that have the log of `run` open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == run / "metrics.jsonl":
                found.append(link.parts[2])
        except OSError:  # it ended meanwhile
            continue
    return found
