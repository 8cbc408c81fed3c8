import atexit
import os
import time
from pathlib import Path

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.processes import pool
from siamusic_fast.processes.pool import Count, Counts, run_in_kept_process, run_in_processes


def append(job: tuple[Path, str], count: Count) -> None:
    """Append a letter to a file, in two steps."""
    path, letter = job
    count((1, 0))
    with path.open("a") as file:
        file.write(letter)
    count((0, 10))


def test_each_job_is_done_once_and_counts_add_up(tmp_path: Path) -> None:
    seen: list[Counts] = []
    jobs = [(tmp_path / "letters", letter) for letter in "abcdefg"]
    run_in_processes(append, jobs, procs=2, counters=2, on_counts=seen.append)
    assert sorted((tmp_path / "letters").read_text()) == list("abcdefg")
    assert seen[-1] == (7, 70)
    assert seen == sorted(seen)


def divide(job: int, count: Count) -> None:
    if job == 0:
        raise DataError("the disk is full")
    count((1 // (job - 1),))


@pytest.mark.parametrize(("job", "kind", "notes"), [(0, DataError, 0), (1, ZeroDivisionError, 1)])
def test_an_error_of_a_job_is_raised_and_a_bug_brings_its_traceback(
    job: int, kind: type[Exception], notes: int
) -> None:
    with pytest.raises(kind) as error:
        run_in_processes(divide, [job], procs=1, counters=1, on_counts=lambda counts: None)
    found = getattr(error.value, "__notes__", [])
    assert len(found) == notes
    assert all("in divide" in note for note in found)


def say_process(path: Path, count: Count) -> None:
    """Append the number of the process to a file; the process takes long to end."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    atexit.register(time.sleep, 5)


def test_a_kept_process_that_ends_for_lack_of_jobs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_KEPT_SECONDS", 1.0)
    monkeypatch.setattr(pool, "_GRACE_SECONDS", 0.1)
    for pause in (0.0, 1.2):  # in which it has left its loop, and its pipe is open
        run_in_kept_process(say_process, [tmp_path / "said"], counters=0, on_counts=lambda counts: None)
        time.sleep(pause)
    run_in_kept_process(say_process, [tmp_path / "said"], counters=0, on_counts=lambda counts: None)
    first, second, third = (tmp_path / "said").read_text().split()
    assert first == second != third
    pool._end([pool._kept.workers.pop(say_process)])
