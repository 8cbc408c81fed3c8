"""Packing on a Dask cluster by a command that is killed; the run is ended on this machine."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.workers import started
from tests.faults.processes import command, end, kill, moment, start, succeed
from tests.faults.test_packing import SMALL, is_done
from tests.faults.tries import Tries
from tests.shards.killing import contents

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("dask"), "plain", "second") as (address, _):
        yield address


def test_a_command_killed_on_a_cluster_is_ended_here_to_identical_bytes(
    music: Path, scheduler: str, tmp_path: Path, tries: Tries
) -> None:
    folder, log = tmp_path / "set", tmp_path / "log"
    there = (command, "shard", music, *SMALL, "--scheduler", scheduler, "--out", folder)
    begun = time.monotonic()
    succeed(start(*there, log=log), log)
    files, seconds = contents(folder), time.monotonic() - begun
    shutil.rmtree(folder)
    rng = random.Random(3)
    for _ in tries:
        after = rng.uniform(0.1, 1.0) * seconds
        with tries.attempt(f"after {after:.3f} s"):
            process = start(*there, log=log)
            moment(after)
            kill(process, "group")
            end(process, 10)
            if not is_done(folder):
                succeed(start(command, "shard", music, *SMALL, "--procs", 2, "--out", folder, log=log), log)
            assert contents(folder) == files
        shutil.rmtree(folder, ignore_errors=True)
