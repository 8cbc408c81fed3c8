"""A tar read from end to end, once: its members as they pass by, and the SHA-256 of all of it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

_CHUNK = 1 << 20
"""Bytes read and hashed at a time."""
_BLOCK = 512
"""Bytes in a tar block: a header is one, contents are padded to whole ones."""


class TarError(Exception):
    """What is no USTAR archive of regular files; says in a few words what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the tar."""

    name: str
    offset: int
    """Of its contents, in bytes."""
    size: int


class HashedTar:
    """Reads forwards from `file`, in large pieces; `on_read` hears how many bytes came in."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read
        self._buffer = memoryview(bytearray(_CHUNK))
        self._start = self._end = 0
        self._position = 0
        self._sha256 = hashlib.sha256()

    def next_member(self) -> Member | None:
        """Return the member that begins here, or None at the end. Raises `TarError` if neither is there."""
        place = self._position
        block = self.read(_BLOCK)
        if len(block) == _BLOCK and not block.strip(b"\0"):
            return None
        if len(block) < _BLOCK:
            raise TarError(f"ends at byte {self._position} without the end of a tar")
        # POSIX.1-1988: name at 0, size at 124 and checksum at 148 in octal digits, type at 156, magic at 257.
        try:
            size, checksum = int(block[124:135], 8), int(block[148:154], 8)
            name = block[:100].rstrip(b"\0").decode()
        except ValueError:
            raise TarError(f"no tar header at byte {place}") from None
        if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" ") or block[257:263] != b"ustar\0":
            raise TarError(f"no tar header at byte {place}, or a damaged one")
        if block[156:157] != b"0":
            raise TarError(f"{name} at byte {place} is no regular file")
        return Member(name, self._position, size)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the file."""
        pieces = []
        while size and (piece := self._next(size)):
            pieces.append(bytes(piece))
            size -= len(piece)
        return b"".join(pieces)

    def skip_to_block(self, place: int) -> None:
        """Pass over all up to the first block at byte `place` or after it."""
        left = -(-place // _BLOCK) * _BLOCK - self._position
        while left > 0 and (piece := self._next(left)):
            left -= len(piece)

    def finish(self) -> tuple[str, bool]:
        """Read the rest; return the SHA-256 of the whole file, and whether there was nothing but zeros."""
        zeros = True
        while piece := self._next(_CHUNK):
            zeros = zeros and not bytes(piece).strip(b"\0")
        return self._sha256.hexdigest(), zeros

    def _next(self, most: int) -> memoryview:
        """Return up to `most` bytes, valid until the next call; none at the end of the file."""
        if self._start == self._end:
            self._start, self._end = 0, self._file.readinto(self._buffer)  # type: ignore[attr-defined]
            self._sha256.update(self._buffer[: self._end])
            self._on_read(self._end)
        piece = self._buffer[self._start : min(self._end, self._start + most)]
        self._start += len(piece)
        self._position += len(piece)
        return piece
