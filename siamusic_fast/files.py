"""Writing files atomically, and opening regular files."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the context ends; if it raises, `path` stays as it is.

    The file is on disk before it gets its name. Only one process may write a path at a time, as the temporary
    name beside it is always the same.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_regular(path: Path) -> FileIO:
    """Open the regular file `path` for reading, unbuffered.

    Raises `OSError` for anything else, such as a named pipe, which would block the reader.
    """
    file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is no regular file")
    return file


def temporary_name(name: str) -> str:
    """Return the name under which the file `name` is written until it is complete."""
    return f".{name}.tmp"
