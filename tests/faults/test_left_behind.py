"""What processes leave behind: nothing in /dev/shm, in the temporary folder or in the table of processes."""

import dataclasses
import random
import signal
from pathlib import Path

import pytest

from siamusic_fast.shards.manifest import ShardSet
from tests.faults.processes import end, finish, moment, send, session, start, train, wait_for
from tests.faults.tries import Tries
from tests.processes.test_loopback import until
from tests.training.test_pretrain import TINY

pytestmark = pytest.mark.faults
SHARED = Path("/dev/shm")
_STOPS = (None, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def left_in_shared_memory(before: set[Path]) -> set[Path]:
    """Return what is there since `before` and belongs to no process that runs."""
    in_use: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            in_use |= {line.split()[-1] for line in maps.read_text().splitlines() if str(SHARED) in line}
        except OSError:  # it ended meanwhile
            continue
    return {path for path in SHARED.iterdir() if path not in before and str(path) not in in_use}


@pytest.mark.parametrize(
    ("backend", "procs"), [("dali", 1), ("torch", 1), pytest.param("dali", 2, marks=pytest.mark.slow)]
)
def test_a_training_leaves_no_process_and_no_file_however_it_ends(
    shard_set: ShardSet, tmp_path: Path, backend: str, procs: int, tries: Tries
) -> None:
    config = dataclasses.replace(TINY, backend=backend, epochs=1, knn_every=1)
    scratch, log, rng = tmp_path / "scratch", tmp_path / "log", random.Random(0)
    scratch.mkdir()
    shared = set(SHARED.iterdir())
    for number in tries:
        run, stop = tmp_path / f"run-{number}", _STOPS[number % len(_STOPS)]
        with tries.attempt(stop or "it ends by itself"):
            process = start(train, config, shard_set, run, procs, log=log, TMPDIR=str(scratch))
            if stop:
                wait_for(run.exists, process)
                moment(rng.uniform(0, 0.5))
                send(process, stop, "group")
            finish(process)
            end(process, 10)
            assert session(process) == []
            assert list(scratch.iterdir()) == []
            until(lambda: not left_in_shared_memory(shared), 10)
