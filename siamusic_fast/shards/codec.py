"""How the audio of a sample is stored: wav, flac or ogg, and the bytes depend on the audio alone."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import soundfile

from siamusic_fast.errors import ConfigError

CODECS = {
    "wav": "16-bit samples behind 44 bytes of header: crops are read without decoding",
    "flac": "lossless, about half the size; a crop costs decoding its whole track",
    "ogg": "Vorbis, lossy, about a tenth of the size; a crop costs decoding its whole track",
}
"""Codec, which is also the ending of the file in the shard, and what it is."""

WAV_HEADER = 44
"""Bytes before the first sample of a WAV file."""
_HIGHEST_RATE = {"wav": 1_000_000, "flac": 655_350, "ogg": 192_000}
"""In Hz: what is taken seriously, what a FLAC frame can say, what libvorbis has settings for."""

_BLOCK = 65_536
"""Samples handed to libvorbis at a time: it keeps them on the stack."""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def encode(pcm: npt.NDArray[np.int16], sample_rate: int, codec: str, quality: float) -> bytes:
    """Return `pcm` as a file of `codec`, flac or ogg; `quality` is that of Vorbis, 0 to 10."""
    file = io.BytesIO()
    if codec == "flac":
        soundfile.write(file, pcm, sample_rate, format="FLAC", subtype="PCM_16")
        return file.getvalue()
    audio = pcm / np.float32(32_768)
    # libsndfile calls it compression: the opposite of quality.
    with soundfile.SoundFile(
        file, "w", sample_rate, 1, "VORBIS", format="OGG", compression_level=1 - quality / 10
    ) as vorbis:
        for start in range(0, len(audio), _BLOCK):
            vorbis.write(audio[start : start + _BLOCK])
    return _without_serial_number(file.getvalue())


def check_rate(codec: str, sample_rate: int) -> None:
    """Raise `ConfigError` if `codec` is none, or cannot store audio at `sample_rate`, in Hz."""
    if codec not in CODECS:
        raise ConfigError(f"codec = {codec!r} is unknown: choose one of {', '.join(CODECS)}.")
    if not 1_000 <= sample_rate <= _HIGHEST_RATE[codec]:
        raise ConfigError(
            f"sample_rate = {sample_rate} must be 1000 to {_HIGHEST_RATE[codec]} Hz for codec {codec}."
        )


def wav_header(samples: int, sample_rate: int) -> bytes:
    """Return the canonical 44 bytes before `samples` 16-bit mono samples, or 22 int16 values."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return riff + layout + struct.pack("<4sI", b"data", size)


def pcm_bytes(pcm: npt.NDArray[np.int16]) -> memoryview:
    """Return the bytes of `pcm`, little-endian whatever the machine, without a copy if possible."""
    return np.ascontiguousarray(pcm, dtype="<i2").data.cast("B")


def _without_serial_number(ogg: bytes) -> bytes:
    """Return `ogg` with 0 as the serial number of its stream, which libsndfile takes from the clock.

    RFC 3533, section 6: a page is 27 bytes (the serial number at 14, a checksum at 22, the number of segments
    at 26), the sizes of the segments, and the segments.
    """
    content = bytearray(ogg)
    page = 0
    while page < len(content):
        sizes = content[page + 27 : page + 27 + content[page + 26]]
        end = page + 27 + len(sizes) + sum(sizes)
        content[page + 14 : page + 18] = bytes(4)
        content[page + 22 : page + 26] = bytes(4)
        content[page + 22 : page + 26] = struct.pack("<I", _ogg_checksum(content[page:end]))
        page = end
    return bytes(content)


def _ogg_checksum(page: bytearray) -> int:
    """Return Ogg's CRC-32: zlib's polynomial with the bits the other way round, from 0 and not inverted."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
