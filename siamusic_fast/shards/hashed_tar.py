"""A tar read from end to end, once: its members as they pass by, and the SHA-256 of all of it."""

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from siamusic_fast.shards.tar_header import BLOCK, Member, TarError, read_header, whole_blocks

_CHUNK = 1 << 20
"""Bytes read and hashed at a time."""


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
        block = self.read(BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):
            return None
        if len(block) < BLOCK:
            raise TarError(f"ends at byte {self._position} without the end of a tar")
        return read_header(block, place)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the file."""
        pieces = []
        while size and (piece := self._next(size)):
            pieces.append(bytes(piece))
            size -= len(piece)
        return b"".join(pieces)

    def skip_to_block(self, place: int) -> None:
        """Pass over all up to the first block at byte `place` or after it."""
        left = whole_blocks(place) - self._position
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
