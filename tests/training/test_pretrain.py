import dataclasses
import errno
import functools
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from siamusic_fast import folder_lock as lock
from siamusic_fast.config import Architecture, MelConfig, PretrainConfig, preset_defaults
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.evaluation.knn import knn_score
from siamusic_fast.files import atomic_write
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint
from siamusic_fast.models import networks as models
from siamusic_fast.models.methods import method_of
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.processes.world import World
from siamusic_fast.progress import Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import pretrain as module
from siamusic_fast.training.compiling import compiled
from siamusic_fast.training.pretrain import PretrainResult, pretrain
from siamusic_fast.training.run_folder import EarlierRun, is_abandoned, load_run, newest_unfinished
from siamusic_fast.training.run_log import healthy_collapse, read_log
from tests.training.networks import TinyEncoder

CONFIG = PretrainConfig(
    **preset_defaults("paper", 6), mel=MelConfig(seconds=0.5), backbone="resnet18", epochs=2, batch_size=6
)
TINY = dataclasses.replace(
    CONFIG, batch_size=2, grad_accum_steps=2, optimizer="sgd", schedule="cosine", lr=0.05
)
"""12 batches per epoch, thus 6 steps, with an encoder of a few weights."""


class Watching:
    """Progress that does something after a step, and remembers the learning rates."""

    def __init__(self, after: int = 0, then: Any = None) -> None:
        self.left = after
        self.then = then
        self.seen: list[Mapping[str, float]] = []

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        self.counts = description == module.TASK
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self.seen += [values] if values else []
        self.left -= steps * self.counts
        if self.left == 0 and self.then and steps:
            self.then()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def crash() -> None:
    """End the work at once and save nothing, as kill -9 does."""
    raise MemoryError


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `TinyEncoder` for all encoders."""
    monkeypatch.setattr(models, "encoder", TinyEncoder)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (checkpoint.load(run / "checkpoint.pt", "pretraining") for run in (one, other))
    for part in ("encoder", "projector", "predictor"):
        for name, weight in first[part].items():
            assert torch.equal(second[part][name], weight), f"{part}.{name}"
    assert first["ranks"][0]["loader"] == second["ranks"][0]["loader"]


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(CONFIG, shard_set, tmp_path_factory.mktemp("runs") / "run").run


def test_a_run_keeps_what_it_was_and_what_it_learnt(run: Path, shard_set: ShardSet) -> None:
    steps_per_epoch = shard_set.tracks(["training"]) // 6
    saved = checkpoint.load(run / "checkpoint.pt", "pretraining")
    assert (saved["epoch"], saved["step"]) == (2, 2 * steps_per_epoch)
    assert load_run(run) == EarlierRun(path=run, config=CONFIG, data=str(shard_set.folder), processes=1)
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
    before, *lines = read_log(run)
    assert before.keys() == {"step", "epoch", "knn"}  # of the encoder that has learnt nothing
    assert {steps_per_epoch, 2 * steps_per_epoch} <= {line["step"] for line in lines}
    for line in lines:
        assert -1 <= line["loss"] <= 1
        assert 0 <= line["waiting"] <= 1
        assert line["pairs_per_second"] > 0
        assert line["peak_memory"] > 100e6  # torch alone takes more
        healthy = healthy_collapse(CONFIG.width)
        assert healthy / 2 < line["collapse"] < 2 * healthy
        assert 1 < line["encoder_rank"] <= CONFIG.batch_size - 1 + 1e-3
        assert 1 < line["projector_rank"] <= CONFIG.batch_size - 1 + 1e-3


@pytest.fixture(scope="module")
def whole_runs(
    shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[PretrainConfig, PretrainResult]]:
    """Return a function that gives a tiny run that was never stopped, and its configuration, by backend."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def whole_run(backend: str) -> tuple[PretrainConfig, PretrainResult]:
        config = dataclasses.replace(TINY, backend=backend, knn_every=1)
        return config, pretrain(config, shard_set, folder / backend)

    return whole_run


slow = pytest.mark.slow


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("backend", "stopped_after"),
    [
        ("dali", 4),
        ("dali", 6),  # the end of an epoch: its kNN accuracy is looked at afterwards
        ("torch", 9),
        *(pytest.param("dali", step, marks=slow) for step in (1, 2, 3, 5, 7, 8, 9, 10, 11)),
        *(pytest.param("torch", step, marks=slow) for step in (1, 4, 6)),
    ],
)
def test_a_run_told_to_stop_saves_within_a_step_and_ends_with_the_same_bits(
    whole_runs: Callable[[str], tuple[PretrainConfig, PretrainResult]],
    shard_set: ShardSet,
    tmp_path: Path,
    stopped_after: int,
    backend: str,
) -> None:
    config, whole = whole_runs(backend)
    stopping = Watching(stopped_after, lambda: send(signal.SIGTERM))
    with pytest.raises(Stopped) as stopped:
        pretrain(config, shard_set, tmp_path / "stopped", progress=stopping)
    assert stopped.value.exit_code == 143
    assert checkpoint.load(tmp_path / "stopped" / "checkpoint.pt", "pretraining")["step"] == stopped_after
    torch.manual_seed(99)
    result = pretrain(config, shard_set, tmp_path / "stopped", resume=True)
    assert (result.steps, result.loss, result.knn) == (12, whole.loss, whole.knn)
    assert_same_weights(whole.run, tmp_path / "stopped")
    kept = ("step", "epoch", "loss", "collapse", "lr", "knn")
    logs = [
        [{name: line[name] for name in kept if name in line} for line in read_log(folder)]
        for folder in (whole.run, tmp_path / "stopped")
    ]
    assert logs[0] == logs[1]


@pytest.mark.usefixtures("tiny")
def test_a_run_that_is_stopped_while_knn_is_looked_at_saves_and_ends_with_the_same_bits(
    whole_runs: Callable[[str], tuple[PretrainConfig, PretrainResult]],
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, whole = whole_runs("torch")
    is_told_to_stop = iter([False, True])

    def look(*args: Any, **options: Any) -> float:
        if next(is_told_to_stop):
            send(signal.SIGTERM)
        return knn_score(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "knn_score", look)
        with pytest.raises(Stopped):
            pretrain(config, shard_set, tmp_path / "stopped")
    saved = checkpoint.load(tmp_path / "stopped" / "checkpoint.pt", "pretraining")
    assert (saved["step"], saved["epoch"], saved["figures"]["knn"]) == (6, 0, None)
    result = pretrain(config, shard_set, tmp_path / "stopped", resume=True)
    assert (result.steps, result.loss, result.knn, result.best_knn) == (
        *(12, whole.loss, whole.knn, whole.best_knn),
    )
    assert_same_weights(whole.run, tmp_path / "stopped")
    found = [{line["step"]: line.get("knn") for line in read_log(run)} for run in (whole.run, result.run)]
    assert found[0] == found[1]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("minutes", "accuracies", "steps"),
    [
        (15.0, (), [12]),
        (15.0, (0.5, 0.4), [6, 12]),
        (15.0, (0.4, 0.5), [6, 12]),
        (1e-4, (), [*range(1, 13), 12]),
    ],
)
def test_checkpoints_are_of_their_time_the_best_epochs_and_the_end(
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    accuracies: tuple[float, ...],
    steps: list[int],
) -> None:
    left = iter([0.1, *accuracies])
    monkeypatch.setattr(module, "knn_score", lambda *_, **__: next(left))
    found, save = [], checkpoint.save

    def noted(path: Path, kind: str, content: dict[str, Any], **options: Any) -> None:
        found.append(content["step"])
        save(path, kind, content, **options)

    monkeypatch.setattr(checkpoint, "save", noted)
    config = dataclasses.replace(TINY, checkpoint_minutes=minutes, knn_every=int(bool(accuracies)))
    pretrain(config, shard_set, tmp_path / "run", progress=Slow())
    assert found == steps


class Slow(Watching):
    """Progress that takes ten milliseconds after each step."""

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        time.sleep(0.01)


@pytest.mark.usefixtures("tiny")
def test_a_run_that_died_goes_on_from_its_last_checkpoint_to_the_same_bits(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    often = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, epochs=1)
    pretrain(often, shard_set, tmp_path / "whole")
    with pytest.raises(MemoryError):
        pretrain(often, shard_set, tmp_path / "died", progress=Watching(4, crash))
    assert checkpoint.load(tmp_path / "died" / "checkpoint.pt", "pretraining")["step"] == 3
    pretrain(often, shard_set, tmp_path / "died", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "died")


@pytest.mark.usefixtures("tiny")
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_bits(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    often = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, epochs=1)
    pretrain(often, shard_set, tmp_path / "whole")
    run = tmp_path / "runs" / "died"
    newest, previous = run / "checkpoint.pt", run / "checkpoint-previous.pt"
    with pytest.raises(MemoryError):
        pretrain(often, shard_set, run, world=World(id="1"), progress=Watching(4, crash))
    with newest.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(64))
    damaged = newest.read_bytes()
    assert load_run(run).config == often
    assert newest_unfinished(tmp_path / "runs") == run
    told = f"{newest} is damaged: checkpoint-previous.pt, of step 2, takes its place and the run goes on"
    with pytest.warns(UserWarning, match=told) as warned, pytest.raises(MemoryError):
        pretrain(often, shard_set, run, resume=True, progress=Watching(3, crash))
    assert len(warned) == 1
    assert [checkpoint.load(path, "pretraining")["step"] for path in (previous, newest)] == [3, 4]
    assert (run / "checkpoint-damaged.pt").read_bytes() == damaged
    newest.unlink()  # as a kill can leave it on a file system without hard links
    assert not is_abandoned(run)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is missing: .* of step 3"):
        pretrain(often, shard_set, run, world=World(id="1", restarts=1))
    assert_same_weights(tmp_path / "whole", run)


@contextmanager
def disk_that_fills_up(saves: int, then: int = 0) -> Iterator[None]:
    """Be a disk that has room for so many checkpoints, not for the next, and `then` for some again."""
    left = iter([*[True] * saves, False, *[True] * then])

    @contextmanager
    def full(path: Path) -> Iterator[Any]:
        with atomic_write(path) as file:
            if path.suffix == ".pt" and not next(left):
                file.write(b"as much as there is room for")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", full)
        yield


def run_on_a_full_disk(config: PretrainConfig, shard_set: ShardSet, out: Path, *, world: World) -> list[str]:
    """Return what each process was told."""
    with disk_that_fills_up(saves=2), pytest.raises(DataError) as error:
        tiny_run(config, shard_set, out, world=world)
    return world.gather(str(error.value))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=slow)])
def test_a_disk_that_fills_up_ends_a_run_in_all_processes_and_it_goes_on_later(
    shard_set: ShardSet, tmp_path: Path, processes: int
) -> None:
    often = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, epochs=1, grad_accum_steps=1)
    run = tmp_path / "run"
    function = functools.partial(run_on_a_full_disk, often, shard_set, run)
    told = launch(function, gpus=0, procs=processes)
    procs = f" --procs {processes}" if processes > 1 else ""
    assert told == processes * [
        f"{run}/checkpoint.pt could not be written, the disk is full: free some space. "
        f"The checkpoint of step 2 is whole: then go on from it with "
        f"`siamusic-fast pretrain --resume {run} --gpus 0{procs}`."
    ]
    saved = {name: checkpoint.load(run / name, "pretraining")["step"] for name in TWO_LAST}
    assert list(saved.values()) == [1, 2]
    assert not list(run.glob(".*.tmp"))
    launch(functools.partial(tiny_run, often, shard_set, run, resume=True), gpus=0, procs=processes)


def test_with_keep_going_a_full_disk_costs_a_checkpoint_and_not_the_run(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    often = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, epochs=1, grad_accum_steps=1)
    run = tmp_path / "run"
    with (
        disk_that_fills_up(saves=2, then=12),
        pytest.warns(UserWarning, match=r"^step 3: training goes on, although .*, the disk is full"),
    ):
        tiny_run(dataclasses.replace(often, keep_going=True), shard_set, run, world=World())
    tiny_run(often, shard_set, tmp_path / "whole", world=World())
    assert_same_weights(tmp_path / "whole", run)


def test_the_last_checkpoint_of_a_run_is_never_done_without(shard_set: ShardSet, tmp_path: Path) -> None:
    keep_going = dataclasses.replace(TINY, knn_every=0, epochs=1, keep_going=True)
    with disk_that_fills_up(saves=0), pytest.raises(DataError, match="the disk is full"):
        tiny_run(keep_going, shard_set, tmp_path / "run", world=World())


TWO_LAST = ("checkpoint-previous.pt", "checkpoint.pt")


@pytest.mark.usefixtures("tiny")
def test_a_job_started_again_resumes_or_else_starts_over(shard_set: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, knn_every=0)
    often = dataclasses.replace(config, checkpoint_minutes=1e-9)
    once, again = World(id="1"), World(id="1", restarts=1)
    with pytest.raises(MemoryError):
        pretrain(config, shard_set, tmp_path / "early", world=once, progress=Watching(2, crash))
    assert pretrain(config, shard_set, tmp_path / "early", world=again).steps == 12
    with pytest.raises(MemoryError):
        pretrain(often, shard_set, tmp_path / "late", world=once, progress=Watching(8, crash))
    watching = Watching()
    pretrain(often, shard_set, tmp_path / "late", world=again, progress=watching)
    assert watching.left == -5  # the steps after the seventh alone
    assert_same_weights(tmp_path / "early", tmp_path / "late")
    for others in (World(id="2", restarts=1), World(id="2")):
        with pytest.raises(DataError, match="already exists and is not empty"):
            pretrain(config, shard_set, tmp_path / "late", world=others)


@pytest.mark.usefixtures("tiny")
def test_the_newest_run_with_epochs_left_is_found(shard_set: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, knn_every=0, epochs=1)
    assert newest_unfinished(tmp_path) is None
    for name, progress in (("a", Watching(2, crash)), ("b", Watching(2, lambda: send(signal.SIGINT)))):
        with pytest.raises((MemoryError, Stopped)):
            pretrain(config, shard_set, tmp_path / name, progress=progress)
    pretrain(config, shard_set, tmp_path / "c")
    assert newest_unfinished(tmp_path) == tmp_path / "b"


@pytest.mark.usefixtures("tiny")
def test_a_run_that_is_going_on_is_left_alone(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_TIMEOUT", 0.0)
    config = dataclasses.replace(TINY, knn_every=0, checkpoint_minutes=1e-9)
    run = tmp_path / "run"
    found: list[str] = []

    def meddle() -> None:
        saved = (run / "checkpoint.pt").read_bytes()
        assert newest_unfinished(tmp_path) is None
        assert not is_abandoned(run)
        for resume in (True, False):
            with pytest.raises(DataError, match=f"{run} is in use by a job that is training") as error:
                pretrain(config, shard_set, run, resume=resume, force=not resume)
            found.append(str(error.value))
        assert (run / "checkpoint.pt").read_bytes() == saved

    assert pretrain(config, shard_set, run, progress=Watching(8, meddle)).steps == 12
    assert len(found) == 2


@pytest.mark.usefixtures("tiny")
def test_a_run_may_be_saved_and_looked_at_more_often_when_it_goes_on(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, knn_every=0)
    with pytest.raises(Stopped):
        pretrain(config, shard_set, tmp_path / "run", progress=Watching(3, lambda: send(signal.SIGTERM)))
    other = dataclasses.replace(config, knn_every=1, checkpoint_minutes=1.0)
    assert pretrain(other, shard_set, tmp_path / "run", resume=True).knn is not None


@pytest.mark.usefixtures("tiny")
def test_a_crash_between_two_files_leaves_no_accuracy_without_its_weights(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.5, 0.75, 0.75])
    monkeypatch.setattr(module, "knn_score", lambda *_, **__: next(accuracies))
    config = dataclasses.replace(TINY, knn_every=1)
    duplicate, calls = checkpoint.duplicate, iter([False, True, False])

    def die_at_the_second(path: Path, name: str, **options: Any) -> None:
        if next(calls):
            raise MemoryError
        duplicate(path, name, **options)

    monkeypatch.setattr(checkpoint, "duplicate", die_at_the_second)
    with pytest.raises(MemoryError):
        pretrain(config, shard_set, tmp_path / "run")
    best, last = (
        checkpoint.load(tmp_path / "run" / name, "pretraining") for name in ("best.pt", "checkpoint.pt")
    )
    assert (best["epoch"], best["figures"]["best_knn"]) == (2, 0.75)
    assert (last["epoch"], last["figures"]["best_knn"]) == (1, 0.5)
    assert pretrain(config, shard_set, tmp_path / "run", resume=True).best_knn == 0.75


@pytest.mark.usefixtures("tiny")
def test_knn_is_looked_at_every_few_epochs_and_the_best_is_kept(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.5, 0.75, 0.25])
    monkeypatch.setattr(module, "knn_score", lambda *_, **__: next(accuracies))
    config = dataclasses.replace(TINY, epochs=5, knn_every=2, grad_accum_steps=12)
    result = pretrain(config, shard_set, tmp_path / "run")
    found = {line["epoch"]: line["knn"] for line in read_log(tmp_path / "run") if "knn" in line}
    assert found == {0: 0.9, 2: 0.5, 4: 0.75, 5: 0.25}
    assert (result.initial_knn, result.knn, result.best_knn) == (0.9, 0.25, 0.75)
    assert checkpoint.load(tmp_path / "run" / "best.pt", "pretraining")["epoch"] == 4
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt", "pretraining")["epoch"] == 5


@pytest.mark.usefixtures("tiny")
def test_the_rates_are_those_of_the_recipe_of_chen_and_he(shard_set: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, fixed_predictor_lr=True, grad_accum_steps=12, epochs=4, knn_every=0)
    pretrain(config, shard_set, tmp_path / "run")
    # Four steps of a cosine from 0.05: 1, 0.854, 0.5 and 0.146 of it.
    rates = [line["lr"] / 0.05 for line in read_log(tmp_path / "run")]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)
    saved = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "pretraining")
    body, predictor = saved["optimizer"]["param_groups"]
    assert (body["lr"], predictor["lr"]) == (pytest.approx(0.05 * 0.146447, rel=1e-5), 0.05)


@pytest.mark.usefixtures("tiny")
def test_batches_that_are_left_at_the_end_of_an_epoch_make_a_step(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    # 12 batches in steps of 5: two whole steps and one of the two batches that are left.
    config = dataclasses.replace(TINY, grad_accum_steps=5, knn_every=0)
    assert pretrain(config, shard_set, tmp_path / "run").steps == 2 * 3


def short_run(config: PretrainConfig, shard_set: ShardSet, out: Path, *, world: World) -> list[Any]:
    """Return steps, last loss and kNN accuracy of every process, and the sum of its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "encoder", TinyEncoder)
        kept: list[nn.Module] = []

        def keep(model: nn.Module, device: torch.device) -> nn.Module:
            kept.append(model)
            return model

        patch.setattr(module, "place", keep)
        result = pretrain(config, shard_set, out, world=world)
    total = float(sum(weight.sum() for weight in kept[0].parameters()))
    return world.gather((result.steps, result.loss, result.knn, total))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=slow)])
def test_processes_take_as_many_steps_each_whatever_the_shards(
    shard_set: ShardSet, tmp_path: Path, processes: int
) -> None:
    # 30 tracks in shards of 2 to 7: 15 for each of two processes, 7 or 8 for each of four.
    assert len({shard.tracks for shard in shard_set.shards(["training", "validation"])}) > 1
    config = dataclasses.replace(
        TINY, splits=("training", "validation"), epochs=1, batch_size=4, grad_accum_steps=1
    )
    function = functools.partial(short_run, config, shard_set, tmp_path / "run")
    found = launch(function, gpus=0, procs=processes)
    steps, loss, knn, _ = found[0]
    assert steps == 30 // processes // 4
    assert -1 <= loss <= 1
    assert 0 <= knn <= 1
    assert found == [found[0]] * processes


Buffers = dict[str, Tensor]


def shared_buffers(
    config: PretrainConfig, shard_set: ShardSet, out: Path, *, world: World
) -> list[list[tuple[Buffers, Buffers]]]:
    """Return, of every process, the buffers that it has before and after each time that they are shared."""
    seen: list[tuple[Buffers, Buffers]] = []
    share = World.share_buffers

    def noted(world: World, model: nn.Module) -> None:
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        share(world, model)
        seen.append((before, {name: buffer.clone() for name, buffer in model.named_buffers()}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "encoder", TinyEncoder)
        patch.setattr(World, "share_buffers", noted)
        pretrain(config, shard_set, out, world=world)
    return world.gather(seen)


def equal(one: Buffers, other: Buffers) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.usefixtures("tiny")
def test_what_is_saved_and_scored_is_the_leading_process_s(shard_set: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, backend="torch", batch_size=4, sync_batchnorm=False, knn_every=1)
    function = functools.partial(shared_buffers, config, shard_set, tmp_path / "run")
    leading, other = launch(function, gpus=0, procs=2)
    # Before the first step; then in each of two epochs: for the checkpoint of a stop while kNN is looked at,
    # for that, and for the checkpoint of the best or the last epoch.
    assert len(leading) == len(other) == 7
    leading, other = leading[1:], other[1:]
    for place, ((own, shared), (others, others_shared)) in enumerate(zip(leading, other, strict=True)):
        assert equal(own, others) == (place % 3 > 0)  # statistics of other tracks, until they are shared
        assert equal(own, shared)
        assert equal(own, others_shared)
    saved = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "pretraining")
    states = {
        f"{part}.{name}": value
        for part in ("encoder", "projector", "predictor")
        for name, value in saved[part].items()
    }
    assert equal(leading[-1][0], {name: states[name] for name in leading[-1][0]})
    encoder = models.encoder(Architecture("resnet18"))
    encoder.load_state_dict(saved["encoder"])
    frontend = Frontend.load(saved["frontend"])
    accuracy = knn_score(encoder, shard_set, frontend, backend="torch", batch_size=4)
    assert read_log(tmp_path / "run")[-1]["knn"] == accuracy


def tiny_run(config: PretrainConfig, shard_set: ShardSet, out: Path, *, world: World, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "encoder", TinyEncoder)
        pretrain(config, shard_set, out, world=world, **options)


def stopped_run(config: PretrainConfig, shard_set: ShardSet, out: Path, *, world: World) -> None:
    """Be told to stop after three steps, in every process."""
    try:
        tiny_run(config, shard_set, out, world=world, progress=Watching(3, lambda: send(signal.SIGTERM)))
    except Stopped:
        world.gather(None)


@pytest.mark.slow
@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_three_processes_that_were_stopped_end_with_the_same_bits(
    shard_set: ShardSet, tmp_path: Path, grad_accum_steps: int
) -> None:
    # Sums over three depend on their order, and that on how gradients are bundled.
    config = dataclasses.replace(TINY, grad_accum_steps=grad_accum_steps, epochs=4, knn_every=2)
    run = functools.partial(tiny_run, config, shard_set)
    launch(functools.partial(run, tmp_path / "whole"), gpus=0, procs=3)
    launch(functools.partial(stopped_run, config, shard_set, tmp_path / "stopped"), gpus=0, procs=3)
    assert checkpoint.load(tmp_path / "stopped" / "checkpoint.pt", "pretraining")["step"] == 3
    launch(functools.partial(run, tmp_path / "stopped", resume=True), gpus=0, procs=3)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def broken_for_pairs(model: nn.Module) -> nn.Module:
    """Return what takes one tensor and fails with the two views of a SimSiam network."""
    return nn.Sequential()


def no_compiler(model: nn.Module) -> nn.Module:
    raise RuntimeError("no compiler in sight")


def compile_in_one(
    broken: Callable[[nn.Module], nn.Module], sync_batchnorm: bool, *, world: World
) -> list[bool]:
    """Let the compiler be `broken` in the second process and return, of all, whether a model is compiled."""
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True, action="always") as warned,
    ):
        patch.setattr(models, "encoder", TinyEncoder)
        patch.setattr(torch, "compile", broken if world.rank else Same)
        model = world.wrap(method_of(TINY), sync_batchnorm=sync_batchnorm)
        found = compiled(model, torch.zeros(2, 1, 16, 22), world)
    told = [str(one.message) for one in warned if "torch.compile failed" in str(one.message)]
    assert len(told) == (1 if world.leads else 0), [str(one.message) for one in warned]
    return world.gather(found is not model)


class Same(nn.Module):
    """What a compiler makes of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *views: Tensor) -> Any:
        return self.model(*views)


def compile_in_one_twice(*, world: World) -> list[list[bool]]:
    cases = ((broken_for_pairs, False), (no_compiler, True))
    return [compile_in_one(broken, sync_batchnorm, world=world) for broken, sync_batchnorm in cases]


def test_a_model_that_one_process_cannot_compile_is_compiled_in_none() -> None:
    assert launch(compile_in_one_twice, gpus=0, procs=2) == [[False, False]] * 2


def test_a_finished_or_different_run_is_not_resumed(run: Path, shard_set: ShardSet) -> None:
    with pytest.raises(DataError, match="all of its 2 epochs"):
        pretrain(CONFIG, shard_set, run, resume=True)
    other = dataclasses.replace(CONFIG, lr=0.5, epochs=1, mel=MelConfig(seconds=0.4))
    with pytest.raises(ConfigError, match=r"started with another mel\.seconds, epochs, lr"):
        pretrain(other, shard_set, run, resume=True)


@pytest.mark.usefixtures("tiny")
def test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    bad = dataclasses.replace(TINY, optimizer="adam", lr=1e30, grad_accum_steps=1, knn_every=0)
    with pytest.raises(
        DataError, match=r"became nan at step 2, .* try lr = 1e\+29 .* --lr 1e\+29 .* no checkpoint yet"
    ):
        pretrain(bad, shard_set, tmp_path / "bad")
    assert not (tmp_path / "bad" / "checkpoint.pt").exists()

    trained: list[nn.Module] = []

    def keep(model: nn.Module, device: torch.device) -> nn.Module:
        trained.append(model)
        return model

    def spoil() -> None:
        for weight in trained[0].parameters():
            weight.data.fill_(float("nan"))

    config = dataclasses.replace(TINY, knn_every=0, checkpoint_minutes=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "place", keep)
        with pytest.raises(
            DataError, match=r"NaN at step 7, .* checkpoint is .*/run/checkpoint\.pt, of step 6"
        ):
            pretrain(config, shard_set, tmp_path / "run", progress=Watching(7, spoil))
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt", "pretraining")["step"] == 6


@pytest.mark.usefixtures("tiny")
def test_a_model_that_cannot_be_compiled_trains_as_it_is_with_one_warning(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: nn.Module) -> Any:
        def call(*_: object) -> None:
            for buffer in model.buffers():
                buffer.fill_(7)
            torch.rand(1)
            raise RuntimeError("no compiler\nin sight")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    config = dataclasses.replace(TINY, epochs=1, knn_every=0)
    pretrain(config, shard_set, tmp_path / "plain")
    with pytest.warns(UserWarning, match=r"goes on without it \(RuntimeError: no compiler\)") as warned:
        pretrain(dataclasses.replace(config, compile=True), shard_set, tmp_path / "compiled")
    assert len(warned) == 1
    assert_same_weights(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_computes_the_same() -> None:
    torch.manual_seed(0)
    model = method_of(TINY).eval()
    views = torch.randn(2, 4, 1, 48, 44)
    expected = model(*views)
    faster = compiled(model, views[0], World())
    assert faster is not model
    for one, other in zip(faster(*views), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("stopped_after", [None, 3])
def test_a_run_with_a_constant_rate_is_extended_as_if_it_had_always_been_longer(
    shard_set: ShardSet, tmp_path: Path, stopped_after: int | None
) -> None:
    longer = dataclasses.replace(TINY, schedule="constant", knn_every=0, warmup_epochs=0.5)
    shorter = dataclasses.replace(longer, epochs=1)
    whole = pretrain(longer, shard_set, tmp_path / "whole")
    if stopped_after is None:
        pretrain(shorter, shard_set, tmp_path / "run")
    else:
        stopping = Watching(stopped_after, lambda: send(signal.SIGTERM))
        with pytest.raises(Stopped):
            pretrain(shorter, shard_set, tmp_path / "run", progress=stopping)
    extended = pretrain(longer, shard_set, tmp_path / "run", resume=True)
    assert (extended.epochs, extended.steps, extended.loss) == (2, 12, whole.loss)
    assert_same_weights(whole.run, extended.run)
    assert [line["lr"] for line in read_log(extended.run)] == [line["lr"] for line in read_log(whole.run)]
    assert json.loads((extended.run / "config.json").read_text())["epochs"] == 2
    with pytest.raises(ConfigError, match=r"is less than the .* it can only become more"):
        pretrain(shorter, shard_set, extended.run, resume=True)


@pytest.mark.usefixtures("tiny")
def test_a_run_with_a_cosine_is_extended_by_a_new_one_and_goes_on_exactly(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    shorter = dataclasses.replace(TINY, epochs=2, knn_every=0, grad_accum_steps=6)  # two steps per epoch
    longer = dataclasses.replace(shorter, epochs=4, checkpoint_minutes=1e-9)
    told = "is extended from 2 to 4 epochs: after epoch 2 the learning rate starts a new cosine at lr = 0.05"
    for name in ("whole", "stopped"):
        pretrain(shorter, shard_set, tmp_path / name)
    with pytest.warns(UserWarning, match=told) as warned:
        whole = pretrain(longer, shard_set, tmp_path / "whole", resume=True)
    assert len(warned) == 1
    # Each of the two cosines has four steps from 0.05: 1, 0.854, 0.5 and 0.146 of it.
    rates = {line["step"]: line["lr"] / 0.05 for line in read_log(whole.run)}
    assert rates == pytest.approx({2: 0.853553, 4: 0.146447, 6: 0.853553, 8: 0.146447}, rel=1e-5)
    with pytest.warns(UserWarning, match=told), pytest.raises(MemoryError):
        pretrain(longer, shard_set, tmp_path / "stopped", resume=True, progress=Watching(2, crash))
    assert load_run(tmp_path / "stopped").config == longer
    pretrain(longer, shard_set, tmp_path / "stopped", resume=True)
    assert_same_weights(whole.run, tmp_path / "stopped")


@pytest.mark.usefixtures("tiny")
def test_a_batch_larger_than_the_set_shrinks_with_a_warning_and_is_recorded(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    tracks = shard_set.tracks(["training"])
    config = dataclasses.replace(TINY, batch_size=1000, grad_accum_steps=1, knn_every=0)
    with pytest.warns(UserWarning, match=f"batch_size = 1000 is more than the {tracks} tracks") as warned:
        result = pretrain(config, shard_set.folder, tmp_path / "run")
    assert (result.steps, len(warned)) == (2, 1)
    assert load_run(result.run).config == dataclasses.replace(config, batch_size=tracks)
    assert json.loads((result.run / "config.json").read_text())["batch_size"] == tracks
    with pytest.raises(
        ConfigError, match=f"each of {tracks} processes gets a batch of 1 from these {tracks} tracks"
    ):
        pretrain(config, shard_set, tmp_path / "other", world=World(world_size=tracks))


def test_a_run_starts_from_the_weights_of_another(run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    still = dataclasses.replace(CONFIG, init=str(run), epochs=1, knn_every=0, lr=1e-30, weight_decay=0.0)
    pretrain(still, shard_set, tmp_path / "run")
    before, after = (checkpoint.load(one / "checkpoint.pt", "pretraining") for one in (run, tmp_path / "run"))
    for name, weight in before["encoder"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(after["encoder"][name], weight), name
    assert after["config"]["init"] == str(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "estimate_frontend", None)  # weights that do not fit are told before the tracks
        with pytest.raises(
            ConfigError, match=r"is a run of resnet18, and backbone = 'resnet34': .* --backbone resnet18"
        ):
            pretrain(dataclasses.replace(still, backbone="resnet34"), shard_set, tmp_path / "other")
