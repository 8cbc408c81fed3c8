"""Training that is killed or told to stop, in real processes."""

import dataclasses
import random
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from siamusic_fast.config import PretrainConfig
from siamusic_fast.folder_lock import is_locked
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import Checkpoints
from siamusic_fast.shards.manifest import ShardSet
from tests.faults.processes import end, finish, kill, moment, send, start, succeed, train, wait_for
from tests.faults.tries import Tries
from tests.processes.test_loopback import until
from tests.training.test_pretrain import TINY, assert_same_weights

pytestmark = pytest.mark.faults
slow = pytest.mark.slow
OFTEN = dataclasses.replace(TINY, checkpoint_minutes=1e-9, knn_every=0, grad_accum_steps=1)
"""24 steps in one process and 12 in each of two, and a checkpoint after each."""
_ENDED = 30.0
"""Seconds in which processes end whose launcher, or one of whom, was killed."""


class Runs:
    """Runs of one configuration in so many processes, and one of them that was never stopped."""

    def __init__(self, shard_set: ShardSet, folder: Path, backend: str, procs: int) -> None:
        self.config: PretrainConfig = dataclasses.replace(OFTEN, backend=backend)
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
