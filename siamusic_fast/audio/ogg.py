"""Finds the links of a chained Ogg file. FFmpeg stops at a link with another rate or codec than the first."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_PAGE = b"OggS\0"
"""First bytes of every page. The last of them is the version, and flags follow: RFC 3533, section 6."""
_FIRST_PAGE_FLAG = 2
_READ_BYTES = 1 << 20
_MAX_PAGE_BYTES = 27 + 255 + 255 * 255


def links(file: BinaryIO) -> list[int]:
    """Return the places where the links of an Ogg file begin. Any other file has one link, at 0."""
    file.seek(0)
    if file.read(len(_PAGE)) != _PAGE:
        return [0]
    starts = []
    before = 0
    for place, flags in _pages(file):
        first = flags & _FIRST_PAGE_FLAG
        if first and not before:  # a link has a first page for each of its streams
            starts.append(place)
        before = first
    return starts or [0]


def missing_at_end(file: BinaryIO) -> int:
    """Return how many bytes the last page of an Ogg file lacks, because the file was cut off in it.

    A page is a head of 27 bytes, the last of them the number of its segments, the sizes of the segments, and
    the segments: RFC 3533, section 6.
    """
    file.seek(0)
    if file.read(len(_PAGE)) != _PAGE:
        return 0
    file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_PAGE_BYTES))
    content = file.read()
    page = content[max(0, content.rfind(_PAGE)) :]
    sizes = page[27:][: page[26]] if len(page) > 26 else b""
    return max(0, 27 + len(sizes) + sum(sizes) - len(page))


def _pages(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the place and the flags of every page of `file`."""
    file.seek(0)
    content, start = b"", 0
    while block := file.read(_READ_BYTES):
        content += block
        place = content.find(_PAGE)
        while 0 <= place < len(content) - len(_PAGE):
            yield start + place, content[place + len(_PAGE)]
            place = content.find(_PAGE, place + len(_PAGE))
        start += len(content) - len(_PAGE)
        content = content[-len(_PAGE) :]
