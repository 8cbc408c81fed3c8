"""Tars of regular files in USTAR, written and read in one pass together with the SHA-256 of all bytes."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

TAR_BLOCK = tarfile.BLOCKSIZE
"""Bytes in a tar block. A header takes one block, and contents are padded to whole blocks."""
_CHUNK = 1 << 20
"""Bytes that are read and hashed at a time."""

Size = TypeVar("Size", int, NDArray[np.int64])


class TarError(ValueError):
    """A file that is no tar of regular files. The message says in a few words what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar."""

    name: str
    offset: int
    """Byte of the tar at which its contents begin."""
    size: int
    """Size of its contents in bytes."""


def read_header(block: bytes, place: int) -> Member:
    """Return the file whose header is `block`, which begins at byte `place` of its tar.

    Raises `TarError` if `block` is no header, a damaged one, or that of something else than a regular file.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise TarError(f"no tar header at byte {place}, or a damaged one") from None
    if not header.isreg():
        raise TarError(f"{header.name} at byte {place} is no regular file")
    return Member(header.name, place + TAR_BLOCK, header.size)


def whole_blocks(size: Size) -> Size:
    """Return `size` rounded up to whole blocks: the bytes that contents of `size` bytes take in a tar."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


class TarWriter:
    """Writes a tar to `file`. The bytes depend on names and contents alone."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0
        """Bytes that are written so far."""

    def add(self, name: str, *parts: bytes | memoryview) -> Member:
        """Append the file `name`, whose contents are `parts`, one behind the other."""
        header = tarfile.TarInfo(name)
        header.size = sum(map(len, parts))
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape"))
        offset = self.size
        for part in parts:
            self._write(part)
        self._write(bytes(whole_blocks(header.size) - header.size))
        return Member(name, offset, header.size)

    def finish(self) -> str:
        """Write the end of the tar and return the SHA-256 of the whole tar."""
        end = self.size + 2 * TAR_BLOCK
        self._write(bytes(2 * TAR_BLOCK + -end % tarfile.RECORDSIZE))
        return self._sha256.hexdigest()

    def _write(self, content: bytes | memoryview) -> None:
        self._sha256.update(content)
        self._file.write(content)
        self.size += len(content)


class TarReader:
    """Reads a tar from `file` forwards. `on_read` is called with the number of bytes of each read."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0
        self._sha256 = hashlib.sha256()

    def next_member(self) -> Member | None:
        """Return the member that begins here, or None at the end. Raises `TarError` if neither is there."""
        place = self._position
        block = self.read(TAR_BLOCK)
        if len(block) < TAR_BLOCK:
            raise TarError(f"ends at byte {self._position} without the end of a tar")
        return read_header(block, place) if block.strip(b"\0") else None

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the file."""
        # A damaged header may state any size, and Python reserves memory for it.
        content = self._file.read(min(size, self._size - self._position))
        self._sha256.update(content)
        self._position += len(content)
        self._on_read(len(content))
        return content

    def skip_to_block(self, place: int) -> None:
        """Skip everything up to the first block that begins at byte `place` or after it."""
        while (left := whole_blocks(place) - self._position) > 0 and self.read(min(left, _CHUNK)):
            pass

    def finish(self) -> tuple[str, bool]:
        """Read the rest. Return the SHA-256 of the whole file, and whether the rest is zeros only."""
        zeros = True
        while content := self.read(_CHUNK):
            zeros = zeros and not content.strip(b"\0")
        return self._sha256.hexdigest(), zeros
