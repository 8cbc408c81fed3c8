"""Writing files atomically, and opening regular files of a sane size."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

SETTINGS_LIMIT = 2**20
"""Most bytes in a file of settings or of a few values, such as config.json or a file for --config: 1 MiB."""
MANIFEST_LIMIT = 2**28
"""Most bytes in manifest.json: 256 MiB, for half a million shards."""
LIST_LIMIT = 2**30
"""Most bytes in a file that is read as a whole, such as an index or a file of labels: 1 GiB."""
TABLE_LIMIT = 2**36
"""Most bytes in a table that is read row by row, such as tracks.csv: 64 GiB, for 200 million tracks."""
WEIGHTS_LIMIT = 2**36
"""Most bytes in a checkpoint or another file of weights: 64 GiB."""


@contextmanager
def atomic_write(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the context ends; if it raises, `path` stays as it is.

    The file is on disk before it gets its name. Processes that write a path at the same time need a name of
    their own, `writer`, for the temporary file beside it.
    """
    temporary = path.with_name(temporary_name(path.name, writer))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_regular(path: Path, limit: int | None = None) -> FileIO:
    """Open the regular file `path` of at most `limit` bytes for reading, unbuffered.

    Raises `OSError` for anything else, such as a named pipe, which would block the reader.
    """
    file = FileIO(path, opener=without_waiting)
    found, problem = os.fstat(file.fileno()), None
    if not stat.S_ISREG(found.st_mode):
        problem = errno.EINVAL, "it is no regular file"
    elif limit is not None and found.st_size > limit:
        problem = errno.EFBIG, f"it has {found.st_size:,} bytes, such a file has at most {limit:,}"
    if problem:
        file.close()
        raise OSError(*problem, str(path))
    return file


def without_waiting(name: str, flags: int) -> int:
    """Open a file for `open` as its `opener`: a named pipe does not make it wait."""
    return os.open(name, flags | os.O_NONBLOCK, 0o666)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of `path`; raises `OSError` as `open_regular` does."""
    with open_regular(path, limit) as file:
        return file.readall()


def file_sha256(path: Path, limit: int | None = None) -> str:
    """Return the SHA-256 of a regular file of at most `limit` bytes in hexadecimal digits."""
    with open_regular(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(name: str, writer: str = "") -> str:
    """Return the name under which the file `name` is written until it is complete, by this `writer`."""
    return f".{name}{writer and f'-{writer}'}.tmp"
