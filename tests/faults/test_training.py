"""Training that is killed or told to stop, in real processes."""

import contextlib
import dataclasses
import functools
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import BinaryIO

import pytest

from siamusic_fast.config import PretrainConfig
from siamusic_fast.errors import SiamusicError
from siamusic_fast.files import atomic_write
from siamusic_fast.folder_lock import is_locked
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import Checkpoints
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from tests.faults.disks import fill, small_disk
from tests.faults.processes import (
    end,
    finish,
    kill,
    moment,
    send,
    start,
    succeed,
    torchrun,
    train,
    wait_for,
)
from tests.faults.tries import Tries
from tests.processes.test_loopback import descendants, until
from tests.processes.test_loopback import runs as is_running
from tests.training.test_pretrain import TINY, assert_same_weights, tiny_run

pytestmark = pytest.mark.faults
slow = pytest.mark.slow
OFTEN = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, grad_accum_steps=1)
"""24 steps in one process and 12 in each of two, and a checkpoint after each."""
_ENDED = 30.0
"""Seconds in which processes end whose launcher, or one of whom, was killed."""


class Runs:
    """Runs of one configuration in so many processes, and one of them that was never stopped."""

    def __init__(
        self, shard_set: ShardSet, folder: Path, backend: str, procs: int, config: PretrainConfig = OFTEN
    ) -> None:
        self.config: PretrainConfig = dataclasses.replace(config, backend=backend)
        self.shard_set, self.folder, self.procs = shard_set, folder, procs
        self.log = folder / "log"
        self.whole = folder / "whole"
        succeed(self.start(self.whole), self.log)

    def start(self, run: Path, resume: bool = False) -> BaseProcess:
        return start(train, self.config, self.shard_set, run, self.procs, resume, log=self.log)

    def start_and_wait(self, run: Path) -> BaseProcess:
        """Start a run and return when its first checkpoint is there."""
        process = self.start(run)
        wait_for((run / "checkpoint.pt").exists, process)
        return process

    def assert_goes_on(self, run: Path) -> None:
        """Resume `run`, if it has steps left, and compare its weights with those of the whole one."""
        until(lambda: not is_locked(run), 10)  # threads of a killed process end after it, and hold the lock
        left = Checkpoints(run)
        if left.only_previous_is_whole() or _step(left.last) < _step(self.whole / "checkpoint.pt"):
            succeed(self.start(run, resume=True), self.log)
        assert_same_weights(self.whole, run)


def _step(path: Path) -> int:
    step: int = checkpoint.load(path, "pretraining")["step"]
    return step


@pytest.mark.parametrize(
    ("backend", "procs"),
    [("dali", 1), ("torch", 1), pytest.param("dali", 2, marks=slow), pytest.param("torch", 2, marks=slow)],
)
def test_a_training_killed_at_random_moments_goes_on_to_the_same_bits(
    shard_set: ShardSet, tmp_path: Path, backend: str, procs: int, tries: Tries
) -> None:
    runs, rng = Runs(shard_set, tmp_path, backend, procs), random.Random(procs)
    for number in tries:
        run, after = tmp_path / f"run-{number}", rng.uniform(0, 1)
        whom = ("group", "one", "child")[number % 3] if procs > 1 else "one"
        with tries.attempt(f"{whom} after {after:.3f} s"):
            process = runs.start_and_wait(run)
            moment(after)
            kill(process, whom)
            end(process, _ENDED)
            runs.assert_goes_on(run)


@pytest.mark.parametrize(
    ("procs", "whom"),
    [(1, "one"), pytest.param(1, "group", marks=slow)]
    + [pytest.param(2, whom, marks=slow) for whom in ("one", "group")],
)
def test_a_training_told_to_stop_saves_and_goes_on_to_the_same_bits(
    shard_set: ShardSet, tmp_path: Path, procs: int, whom: str, tries: Tries
) -> None:
    runs = Runs(shard_set, tmp_path, "torch", procs)
    for turn in tries:
        run, number = tmp_path / f"run-{turn}", (signal.SIGTERM, signal.SIGHUP)[turn % 2]
        with tries.attempt(signal.Signals(number).name):
            process = runs.start_and_wait(run)
            send(process, number, whom)
            assert finish(process) in (128 + number, 0), runs.log.read_text()
            end(process, _ENDED)
            runs.assert_goes_on(run)


def test_of_two_trainings_in_one_folder_the_second_is_refused(
    shard_set: ShardSet, tmp_path: Path, tries: Tries
) -> None:
    runs = Runs(shard_set, tmp_path, "torch", 1)
    for number in tries:
        run = tmp_path / f"run-{number}"
        with tries.attempt(number):
            first = runs.start_and_wait(run)
            send(first, signal.SIGSTOP, "group")  # or it could end before the second one starts
            second = runs.start(run, resume=True)
            refused = finish(second)
            send(first, signal.SIGCONT, "group")
            assert [refused, finish(first)] == [1, 0], runs.log.read_text()
            assert "is in use by a job" in runs.log.read_text()
            assert_same_weights(runs.whole, run)


def test_three_trainings_at_once_on_one_shard_set_end_with_the_bits_of_one(
    shard_set: ShardSet, tmp_path: Path, tries: Tries
) -> None:
    runs = Runs(shard_set, tmp_path, "dali", 1)
    for number in tries:
        with tries.attempt(number):
            folders = [tmp_path / f"run-{number}-{place}" for place in range(3)]
            processes = [runs.start(folder) for folder in folders]
            assert [finish(process) for process in processes] == [0, 0, 0], runs.log.read_text()
            for folder in folders:
                assert_same_weights(runs.whole, folder)


@pytest.mark.parametrize("room", ["comes back", pytest.param("does not", marks=slow)])
def test_with_keep_going_a_full_disk_costs_checkpoints_and_not_the_run(
    shard_set: ShardSet, tmp_path: Path, room: str, tries: Tries
) -> None:
    longer = dataclasses.replace(OFTEN, keep_going=True, epochs=4)
    runs, disk = Runs(shard_set, tmp_path, "torch", 1, longer), tmp_path / "disk"
    needed = sum(path.stat().st_size for path in runs.whole.rglob("*.pt"))
    for number in tries:
        runs.log.write_bytes(b"")
        run = disk / "run"
        with tries.attempt(number), small_disk(disk, 8 * needed):
            process = runs.start_and_wait(run)
            with standing_still(process):
                fill(disk / "ballast")
            wait_for(lambda: "training goes on, although" in runs.log.read_text(), process)
            if room == "comes back":
                with standing_still(process):
                    (disk / "ballast").unlink()
                succeed(process, runs.log)
            else:
                assert finish(process) == 1, runs.log.read_text()
                assert "could not be written, the disk is full" in runs.log.read_text().splitlines()[-1]
                (disk / "ballast").unlink()
            assert checkpoint.is_whole(run / "checkpoint.pt")
            runs.assert_goes_on(run)


@contextmanager
def standing_still(process: BaseProcess) -> Iterator[None]:
    send(process, signal.SIGSTOP, "one")
    yield
    send(process, signal.SIGCONT, "one")


def run_killed_while_saving(
    config: PretrainConfig, shard_set: ShardSet, out: Path, victim: int, *, world: World, resume: bool = False
) -> None:
    """Train; at the first start, the process `victim` is killed in the middle of the third save."""
    processes, saves = world.gather(os.getpid()), iter(range(100))

    @contextmanager
    def deadly(path: Path) -> Iterator[BinaryIO]:
        with atomic_write(path) as file:
            if path.suffix == ".pt" and next(saves) == 2 and world.restarts == 0 and not resume:
                if world.rank == victim:
                    file.write(b"as much as is written until then")
                    file.flush()
                os.kill(processes[victim], signal.SIGKILL)
            yield file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", deadly)
        tiny_run(config, shard_set, out, world=world, resume=resume)


@slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("max_restarts", [0, 1])
def test_a_process_killed_while_a_checkpoint_is_saved_leaves_the_last_one_whole(
    shard_set: ShardSet, tmp_path: Path, victim: int, max_restarts: int
) -> None:
    config, run = dataclasses.replace(OFTEN, backend="torch"), tmp_path / "run"
    work = functools.partial(run_killed_while_saving, config, shard_set, run, victim)
    if max_restarts:
        launch(work, gpus=0, procs=2, max_restarts=max_restarts)
    else:
        with pytest.raises(SiamusicError, match=rf"^rank {victim} was ended by signal 9 \(SIGKILL\)"):
            launch(work, gpus=0, procs=2)
        assert checkpoint.is_whole(run / "checkpoint.pt")
        assert _step(run / "checkpoint.pt") in ((2,) if victim == 0 else (2, 3))
        launch(functools.partial(work, resume=True), gpus=0, procs=2)
    assert_same_weights(Runs(shard_set, tmp_path, "torch", 2).whole, run)


@slow
@pytest.mark.parametrize("max_restarts", [0, 1])
def test_under_torchrun_a_killed_process_ends_all_or_starts_all_again(
    shard_set: ShardSet, tmp_path: Path, max_restarts: int
) -> None:
    runs, run = Runs(shard_set, tmp_path, "torch", 2), tmp_path / "run"
    process = start(torchrun, runs.config, shard_set.folder, run, max_restarts, log=runs.log)
    wait_for((run / "checkpoint.pt").exists, process)
    assert process.pid is not None
    _, *ranks = descendants(process.pid)  # each in a session of its own
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        os.kill(ranks[-1], signal.SIGKILL)
    if max_restarts:
        succeed(process, runs.log)
    else:
        assert finish(process) == 1, runs.log.read_text()
        assert "Signal 9 (SIGKILL) received" in runs.log.read_text()
    until(lambda: not any(is_running(pid) for pid in ranks), _ENDED)
    runs.assert_goes_on(run)
