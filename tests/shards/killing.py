"""Kill a packer at its n-th operation on files, for every n, and pack again: a program of its own.

    python -m tests.shards.killing AUDIO EXPECTED SCRATCH [force]

AUDIO is a folder, EXPECTED a shard set of it that was never interrupted. With "force", each kill hits a
packer that replaces a finished shard set made with another seed. Prints how many kills there were.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.shards.pack import PackConfig, pack

CONFIG = PackConfig(sample_rate=8000, min_seconds=0.1, tracks_per_shard=2)
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


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


def _killed_at(operation: int, folder: Path, work: Callable[[], None]) -> bool:
    """Do `work` in a process that is killed before its `operation`-th operation below `folder`."""
    child = os.fork()
    if not child:
        left = operation

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in _OPERATIONS and str(folder) in str(arguments[0]):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise SystemExit(f"operation {operation}: the packer failed with status {status}")
    return False


def main(audio: Path, expected: Path, scratch: Path, force: bool) -> None:
    folder, other = scratch / "folder", scratch / "other"
    if force:
        pack_serially(audio, other, PackConfig(sample_rate=8000, min_seconds=0.1, tracks_per_shard=3, seed=1))
    kills = 0
    while True:
        if force:
            shutil.copytree(other, folder)
        if not _killed_at(kills + 1, folder, lambda: pack_serially(audio, folder, force=force)):
            break
        kills += 1
        if not _is_done(folder, expected):
            pack_serially(audio, folder, force=force)
        assert contents(folder) == contents(expected), f"operation {kills}"
        shutil.rmtree(folder)
    sys.stdout.write(f"{kills}\n")


def _is_done(folder: Path, expected: Path) -> bool:
    """Return whether the kill came so late that only an empty mark is left, if any."""
    mark = folder / ".packing"
    return folder.is_dir() and contents(folder) == contents(expected) and not (mark / "lock").exists()


if __name__ == "__main__":
    audio, expected, scratch = map(Path, sys.argv[1:4])
    main(audio, expected, scratch, force="force" in sys.argv[4:])
