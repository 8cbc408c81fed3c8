"""Reads the length that the headers of an audio file promise, which may be more than it holds."""

import os
import struct
from typing import BinaryIO

_KNOWN_SIZES = range(1024, 2**31 - 2**16)
"""Sizes in an AIFF header that mean something, and with smaller ones in a RIFF header. Others are left by
writers that cannot go back."""

_KNOWN_LARGE_SIZES = range(1024, 2**62)
"""Sizes in a header with 64 bits that mean something."""

_OUTER_CHUNKS = (b"RIFF", b"FORM")
"""Names of chunks that begin a file, and are in no other."""

_MIN_EXCESS = 1.1
"""A file that is this many times as large as its header says is longer, and not only by tags."""

_WITHOUT_LENGTH = {"aac", "ac3", "amr", "dts", "eac3", "loas", "mpeg", "mpegts"}
"""FFmpeg's names of formats that state no length. The length that it gives is a guess by the bit rate."""

_HEADER_BYTES = 4096
"""A header is looked for in so many bytes from the start of a file, or from the first frame of an MP3."""

_MPEG_RATES = (44_100, 48_000, 32_000)
"""Sample rates of MPEG-1 in Hz; those of MPEG-2 are half of them, those of MPEG-2.5 a quarter."""


def promised_seconds(file: BinaryIO, format_name: str, stated: float | None, decoded: float) -> float | None:
    """Return the seconds that the headers of `file` promise, or None if they promise nothing.

    `stated` is what FFmpeg says, which for an MP3 may be a guess, and for a RIFF file may be no more than the
    file holds; `decoded` is how many seconds have been decoded. The position in `file` is changed.
    """
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    if format_name == "mp3":
        exact = _mp3_seconds(file, head)
        return exact if exact is None or stated is None else min(exact, stated)
    if stated is None or format_name in _WITHOUT_LENGTH:
        return None
    if head[:4] == b"RIFF":
        return max(stated, decoded * _promised_share_of_riff(file))
    stated_bytes = _stated_bytes(head)
    if stated_bytes is None:
        return stated
    return max(stated, decoded * _promised_share(file.seek(0, os.SEEK_END), stated_bytes))


def _promised_share(size: int, stated: range) -> float:
    """Return the length that a file of `size` bytes should have, as a multiple of the length that decodes.

    A file that is smaller than `stated` was cut off. What a larger one has beyond that is not decoded.
    """
    there = size - stated.start
    return there / len(stated) if there > _MIN_EXCESS * len(stated) else max(1, len(stated) / max(1, there))


def _promised_share_of_riff(file: BinaryIO) -> float:
    """Return the length that a RIFF file should have, as a multiple of the length that decodes.

    Its chunk `data` may be cut off, or be shorter than what is there, if no other chunks come behind it.
    """
    size, place, audio = file.seek(0, os.SEEK_END), 12, 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(8)
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if not 0 < length < _KNOWN_SIZES.stop:
                return 1.0
            audio = length
            if place + 8 + length > size:
                return length / max(1, size - place - 8)
        elif name in _OUTER_CHUNKS or not all(32 <= character < 127 for character in name):
            break
        place += 8 + length + length % 2
    stray = size - place
    return 1 + stray / audio if audio and stray > (_MIN_EXCESS - 1) * audio else 1.0


def _stated_bytes(head: bytes) -> range | None:
    """Return the bytes where the audio of a file is by its header, or None if the header does not say."""
    kind, known, start = head[:4], _KNOWN_SIZES, 0
    if kind == b"FORM":
        size = int.from_bytes(head[4:8], "big") + 8
    elif kind == b"RF64":
        size, known = int.from_bytes(head[20:28], "little") + 8, _KNOWN_LARGE_SIZES
    elif kind == b"riff":  # Sony's Wave64
        size, known = int.from_bytes(head[16:24], "little"), _KNOWN_LARGE_SIZES
    elif kind == b"caff" and b"data" in head:
        start = head.index(b"data") + 12
        size, known = int.from_bytes(head[start - 8 : start], "big"), _KNOWN_LARGE_SIZES
    else:
        return None
    return range(start, start + size) if size in known else None


def _mp3_seconds(file: BinaryIO, head: bytes) -> float | None:
    """Return the length by the Xing or Info header in the first frame, with the encoder's padding.

    The header is the name, four bytes of flags, and the number of frames if the lowest flag is set.
    """
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
    file.seek(start)
    content = file.read(_HEADER_BYTES)
    for name in (b"Xing", b"Info"):
        place = content.find(name)
        frame = content.rfind(b"\xff", 0, max(place, 0))
        if frame < 0 or len(content) < place + 12:
            continue
        flags, frames = struct.unpack_from(">II", content, place + 4)
        if flags & 1 and (frame_seconds := _frame_seconds(content[frame : frame + 4])):
            return float(frames) * frame_seconds
    return None


def _frame_seconds(header: bytes) -> float | None:
    """Return the length of an MPEG layer III frame by its header, or None if the header is not valid."""
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    if header[1] & 0xE0 != 0xE0 or version == 1 or rate == 3:
        return None
    samples, divisor = {3: (1152, 1), 2: (576, 2), 0: (576, 4)}[version]
    return samples * divisor / _MPEG_RATES[rate]
