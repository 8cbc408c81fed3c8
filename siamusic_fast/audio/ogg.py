"""The links of a chained Ogg file: FFmpeg gives up at a link of another rate or codec than the first."""

from collections.abc import Iterator
from typing import BinaryIO

_PAGE = b"OggS\0"
"""What every page begins with, and its version: RFC 3533, section 6. The next byte holds flags."""
_FIRST = 2
"""Flag of the first page of a stream."""
_BLOCK = 1 << 20


def links(file: BinaryIO) -> list[int]:
    """Return where the links of an Ogg file begin; of any other file, where it begins, which is 0."""
    file.seek(0)
    if file.read(len(_PAGE)) != _PAGE:
        return [0]
    starts = []
    before = False
    for place, flags in _pages(file):
        first = bool(flags & _FIRST)
        if first and not before:
            starts.append(place)
        before = first
    return starts or [0]


def _pages(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the place and the flags of every page of `file`."""
    file.seek(0)
    content, start = b"", 0
    while block := file.read(_BLOCK):
        content += block
        place = content.find(_PAGE)
        while 0 <= place < len(content) - len(_PAGE):
            yield start + place, content[place + len(_PAGE)]
            place = content.find(_PAGE, place + len(_PAGE))
        rest = content[-len(_PAGE) :]
        start += len(content) - len(rest)
        content = rest
