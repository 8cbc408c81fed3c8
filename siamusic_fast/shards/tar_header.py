"""The block of 512 bytes that a tar has in front of each of its files."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
"""Bytes in a tar block: a header is one, contents are padded to whole ones."""

Size = TypeVar("Size", int, NDArray[np.int64])


class TarError(Exception):
    """What is no USTAR archive of regular files; says in a few words what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the tar."""

    name: str
    offset: int
    """Of its contents, in bytes."""
    size: int


def read_header(block: bytes, place: int) -> Member:
    """Return the file whose header is `block`, which begins at byte `place` of its tar.

    Raises `TarError` if `block` is no header, a damaged one, or that of no regular file.
    """
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
    return Member(name, place + BLOCK, size)


def whole_blocks(size: Size) -> Size:
    """Return how many bytes `size` bytes take in a tar: as many, or up to the end of their last block."""
    return -(-size // BLOCK) * BLOCK
