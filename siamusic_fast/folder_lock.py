"""One job at a time in a folder: a lock that the process which holds it takes with it when it dies."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO, Self

from siamusic_fast.errors import DataError

LOCK = ".lock"
"""File in the folder that is locked; it stays when the lock is given back."""
_PATIENCE = 2.0
"""Seconds until a lock counts as held: those who only look hold it for a moment."""
_POLL = 0.05


class FolderLock:
    """Keeps other jobs out of the folder that it has taken, until it is closed."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def take(self, folder: Path) -> None:
        """Lock `folder`, which exists. Raises DataError if another job has it."""
        self.close()
        file = (folder / LOCK).open("ab")
        deadline = time.monotonic() + _PATIENCE
        while not _try_to_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.close()
                raise in_use(folder)
            time.sleep(_POLL)
        self._file = file
        # A forked worker would keep the lock for as long as it outlives this process.
        os.register_at_fork(after_in_child=file.close)

    def close(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_locked(folder: Path) -> bool:
    """Whether a job, of this process or another, has `folder`."""
    try:
        with (folder / LOCK).open("rb") as file:
            return not _try_to_lock(file, fcntl.LOCK_SH)
    except OSError:
        return False


def in_use(folder: Path) -> DataError:
    """Return the error that says that another job has `folder`."""
    return DataError(
        f"{folder} is in use by a job that is training: wait for it or stop it, or use another out (on the "
        f"command line --out)."
    )


def _try_to_lock(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better unguarded than not at all
        pass
    return True
