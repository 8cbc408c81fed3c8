"""Stop a packer at its n-th operation on files, for every n, and pack again: a program of its own.

    python -m tests.shards.killing AUDIO EXPECTED SCRATCH killed|full [--force]

AUDIO is a folder, EXPECTED a shard set of it that was never interrupted. The packer is killed, or its disk is
full from that operation on. With --force, it replaces a finished shard set made with another seed. Prints how
many packers were stopped.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.errors import DataError
from siamusic_fast.shards.pack import PackConfig, pack

CONFIG = PackConfig(sample_rate=8000, min_seconds=0.1, tracks_per_shard=2)
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
_FULL = 3
"""Exit code of a packer that said that its disk is full."""


class Serial(Executor):
    """Runs a job when it is submitted, so that everything happens in this process, in one order."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def pack_serially(audio: Path, folder: Path, config: PackConfig = CONFIG, force: bool = False) -> None:
    pack(load_folder(audio), folder, config, executor=Serial(), force=force)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".packing"}


def kill_readers(of: Path, times: int) -> None:
    """Kill the first child of this process that has the file open, and the next ones, so many in all."""
    killed: set[int | None] = set()
    while len(killed) < times:
        for child in multiprocessing.active_children():
            with suppress(OSError):
                for descriptor in Path(f"/proc/{child.pid}/fd").iterdir():
                    if descriptor.readlink() == of and child.pid not in killed:
                        child.kill()
                        killed.add(child.pid)
        time.sleep(0.001)


def _stopped_at(operation: int, folder: Path, work: Callable[[], None], full: bool) -> bool:
    """Do `work` in a process that is stopped at its `operation`-th operation below `folder`."""
    child = os.fork()
    if not child:
        left = operation

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in _OPERATIONS or str(folder) not in str(arguments[0]):
                return
            if full and not _takes_space(event, arguments):
                return
            left -= 1
            if left <= 0 and full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except (DataError, OSError):  # which are one line on the command line
            os._exit(_FULL if full else 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or (full and os.waitstatus_to_exitcode(status) == _FULL):
        return True
    if status:
        raise SystemExit(f"operation {operation}: the packer failed with status {status}")
    return False


def _takes_space(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an operation writes: `open` is told the flags as its third argument."""
    return event in ("os.mkdir", "os.rename") or (
        event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    )


def main(audio: Path, expected: Path, scratch: Path, full: bool, force: bool) -> None:
    folder, other = scratch / "folder", scratch / "other"
    if force:
        pack_serially(audio, other, PackConfig(sample_rate=8000, min_seconds=0.1, tracks_per_shard=3, seed=1))
    stops = 0
    while True:
        if force:
            shutil.copytree(other, folder)
        if not _stopped_at(stops + 1, folder, lambda: pack_serially(audio, folder, force=force), full):
            break
        stops += 1
        if not _is_done(folder, expected):
            pack_serially(audio, folder, force=force)
        assert contents(folder) == contents(expected), f"operation {stops}"
        shutil.rmtree(folder)
    sys.stdout.write(f"{stops}\n")


def _is_done(folder: Path, expected: Path) -> bool:
    """Return whether the kill came so late that only an empty mark is left, if any."""
    mark = folder / ".packing"
    return folder.is_dir() and contents(folder) == contents(expected) and not (mark / "lock").exists()


if __name__ == "__main__":
    audio, expected, scratch = map(Path, sys.argv[1:4])
    main(audio, expected, scratch, full=sys.argv[4] == "full", force="--force" in sys.argv)
