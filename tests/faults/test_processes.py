"""Worker processes that are killed while they count, and files that a reader would wait for for ever."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from siamusic_fast.cli import main
from siamusic_fast.processes.pool import Count, Counts, WorkerDiedError, run_in_processes
from tests.faults.tries import Tries

pytestmark = pytest.mark.faults
_HANGS = 60
"""Seconds after which something counts as hanging, on a busy machine."""


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Fail if the context takes too long."""

    def fail(number: int, frame: object) -> None:
        pytest.fail(f"it hangs: {_HANGS} s have passed")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(_HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def count_without_end(job: int, count: Count) -> None:
    while True:
        count((1,))


def test_a_worker_killed_while_it_counts_keeps_no_other_from_counting(tries: Tries) -> None:
    rng = random.Random(0)
    for _ in tries:
        after, begun = rng.uniform(0, 0.1), 0.0

        def kill_one(counts: Counts, after: float = after) -> None:
            nonlocal begun
            begun = begun or (time.monotonic() if counts[0] else 0.0)
            if begun and time.monotonic() > begun + after:
                multiprocessing.active_children()[0].kill()

        with tries.attempt(f"after {after:.3f} s"), no_hang(), pytest.raises(WorkerDiedError):
            run_in_processes(count_without_end, [0, 1], procs=2, counters=1, on_counts=kill_one)


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge file": a_huge_file,
    "folder": Path.mkdir,
}
_TRAIN = ["pretrain", "--data", "set", "--gpus", "0", "--seconds", "0.1", "--batch-size", "4", "--out", "new"]
READERS = {
    "set/manifest.json": (["inspect", "set"], ["verify", "set"], _TRAIN),
    "set/tracks.csv": (["inspect", "set"], ["verify", "set"], _TRAIN),
    "set/rejected.csv": (["inspect", "set"], ["verify", "set"]),
    "set/training-000000.idx": (["verify", "set"], _TRAIN),
    "set/training-000000.tar": (["verify", "set"], _TRAIN),
    "set/frontends.json": (["verify", "set"],),
    "settings.yaml": (["pretrain", "--config", "settings.yaml"],),
    "labels.csv": (["shard", "music", "--labels", "labels.csv", "--out", "new"],),
    "data/fma_metadata/tracks.csv": (["shard", "fma_small", "--out", "new"],),
    "run/checkpoint.pt": (["export", "run", "--to", "safetensors"], ["embed", "run", "music"]),
}
"""Commands that read each file."""


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_sane_file_is_refused_in_one_line_and_not_waited_for(
    small: Path, kind: str, tries: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    for folder in ("run", "data/fma_metadata", "data/fma_small"):
        Path(folder).mkdir(parents=True)
    for name, commands in READERS.items():
        path, aside = Path(name), Path("aside")
        if path.exists():
            path.rename(aside)
        KINDS[kind](path)
        for words in commands:
            with tries.attempt(words), no_hang():
                result = CliRunner().invoke(main, words)
                assert result.exit_code in (1, 2), result.output
                assert path.name in result.output
                assert result.output.count("error: ") <= 1
                assert "Traceback" not in result.output
        path.rmdir() if kind == "folder" else path.unlink()
        if aside.exists():
            aside.rename(path)
    tries.finish()
