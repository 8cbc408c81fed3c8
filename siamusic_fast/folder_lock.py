"""A lock that keeps other jobs out of a folder until its process closes it or ends."""

import fcntl
import os
import time
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Self

from siamusic_fast.errors import DataError
from siamusic_fast.files import open_regular, without_waiting

LOCK = ".lock"
"""Name of the lock file in the folder; it is not deleted when the lock is released."""
_TIMEOUT = 2.0
"""Seconds to wait for the lock, as `is_locked` in another process holds it for a moment."""
_POLL_SECONDS = 0.05


class FolderLock:
    """Keeps other jobs out of a folder, from `take` until `close` or the end of the process."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def take(self, folder: Path) -> None:
        """Lock the existing `folder`.

        Raises `DataError` if another job has locked it, or if there is something else in the lock's place.
        """
        self.close()
        path = folder / LOCK
        if path.exists() and not path.is_file():
            raise DataError(
                f"{path} is no regular file, and nothing else can be locked: remove it, or use another out "
                f"(on the command line --out)."
            )
        file = open(path, "ab", opener=without_waiting)  # noqa: SIM115
        deadline = time.monotonic() + _TIMEOUT
        while not _try_to_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.close()
                raise in_use(folder)
            time.sleep(_POLL_SECONDS)
        self._file = file
        # A forked worker that outlives this process would keep the lock.
        os.register_at_fork(after_in_child=file.close)

    def close(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_locked(folder: Path) -> bool:
    """Whether a job of this or another process has locked `folder`."""
    try:
        with open_regular(folder / LOCK) as file:
            return not _try_to_lock(file, fcntl.LOCK_SH)
    except OSError:
        return False


def in_use(folder: Path) -> DataError:
    """Return the error for a folder that another job has locked."""
    return DataError(
        f"{folder} is in use by a job that is training: wait for it or stop it, or use another out (on the "
        f"command line --out)."
    )


def _try_to_lock(file: BinaryIO | FileIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: go on without one
        pass
    return True
