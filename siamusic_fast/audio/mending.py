"""Mends the beginning of files that FFmpeg does not understand, where it is plain what is meant."""

import os
import re
import struct
from typing import BinaryIO

_SEARCHED_BYTES = 1 << 20
"""What is meant is looked for in so many bytes from the start of a file."""

RIFX = b"RIFX"
"""First bytes of a WAV file with big-endian numbers. FFmpeg opens some, and decodes them to noise."""
_AU_ENCODINGS = {(1, 16): 3, (1, 24): 4, (1, 32): 5, (3, 32): 6, (3, 64): 7}
"""Format and bits of a WAV file -> number of the encoding in an AU file."""

_UNKNOWN_SIZE = b"\xff\xff\xff\xff"
_FORM_SIZE = b"\x7f\xff\xff\xff"

_SIGNATURES = re.compile(rb"fLaC|OggS\0|RIFF.{4}WAVE|FORM.{4}AIF[FC]|.{4}ftyp", re.DOTALL)
"""First bytes of formats that FFmpeg knows by them alone: junk before them hides the format."""

_STREAMINFO = b"\0\0\0\x22"
"""First bytes of the block that a FLAC file begins with, behind its signature: RFC 9639, section 8.1."""


def mended_beginning(file: BinaryIO) -> tuple[bytes, int] | None:
    """Return what `file` should begin with, and where it goes on behind that, or None if nothing is plain.

    Junk is passed over, and so is the head of an ID3 tag of an impossible size. Mended are WAV files whose
    chunks are not where their sizes say, or whose first bytes are damaged; AIFF and AU files whose sizes were
    never written; and FLAC files with a damaged signature.
    """
    file.seek(0)
    content = file.read(_SEARCHED_BYTES)
    if content[:4] == RIFX:
        return _as_au(content)
    if content[4:8] == _STREAMINFO:
        return b"fLaC", 4
    if content[:4] == b".snd":
        return content[:8] + _UNKNOWN_SIZE, 12
    if content[:4] == b"FORM" and (place := content.find(b"SSND")) > 0:
        return content[:4] + _FORM_SIZE + content[8 : place + 4] + _UNKNOWN_SIZE, place + 8
    if content[:4] == b"RIFF" or content[8:12] == b"WAVE":
        return _mended_wav(content)
    if found := _SIGNATURES.search(content, 1):
        return b"", found.start()
    return (b"", 10) if content[:3] == b"ID3" else None


def _mended_wav(content: bytes) -> tuple[bytes, int] | None:
    layout = content.find(b"fmt ")
    end = layout + 8 + int.from_bytes(content[layout + 4 : layout + 8], "little")
    data = content.find(b"data", end)
    if layout < 0 or data < 0:
        return None
    return b"RIFF" + _UNKNOWN_SIZE + b"WAVE" + content[layout:end] + content[data : data + 8], data + 8


def _as_au(content: bytes) -> tuple[bytes, int] | None:
    """Return the header of an AU file, whose numbers are big-endian, for a WAV file that has them."""
    layout = content.find(b"fmt ")
    data = content.find(b"data", layout)
    if layout < 0 or data < layout + 24:
        return None
    kind, channels, rate, _, _, bits = struct.unpack_from(">HHIIHH", content, layout + 8)
    encoding = _AU_ENCODINGS.get((kind, bits))
    if encoding is None:
        return None
    size = content[data + 4 : data + 8]
    head = b".snd" + struct.pack(">I", 24) + size + struct.pack(">III", encoding, rate, channels)
    return head, data + 8


def lacks_index(file: BinaryIO) -> bool:
    """Return whether `file` is an MP4 without `moov`, the box without which nothing in it can be found."""
    size, place, kinds = file.seek(0, os.SEEK_END), 0, []
    while place < size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        kinds.append(kind)
        if length == 1:  # the length has 64 bits, behind the kind
            length = int.from_bytes(head[8:16], "big")
        if kinds[0] != b"ftyp" or length < 8:
            break
        place += length
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds
