"""How the audio of a track is stored: as WAV, FLAC or Ogg Vorbis. The bytes depend on the audio alone."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import soundfile

from siamusic_fast.config import CODECS
from siamusic_fast.config.fields import Between, OneOf, check_settings
from siamusic_fast.errors import ConfigError

WAV_HEADER = 44
"""Bytes before the first sample of a WAV file."""
_MAX_RATE = {"wav": 1_000_000, "flac": 655_350, "ogg": 192_000}
"""Highest sample rate of each codec in Hz: a sane one, the limit of a FLAC frame, the limit of libvorbis."""

_BLOCK = 65_536
"""Samples that libvorbis gets at a time, because it keeps them on the stack."""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the audio of a shard set is stored. Raises `ConfigError` for a combination that cannot work."""

    codec: Annotated[str, OneOf(CODECS)] = "wav"
    """How audio is stored. wav: crops are read without decoding; flac: lossless, about half the size; ogg:
    Vorbis, lossy, about a tenth of the size."""
    quality: Annotated[float, Between(0, 10)] = 5.0
    """Quality of Vorbis, for the codec ogg, from 0 to 10."""
    sample_rate: int
    """Sample rate of the audio, in Hz."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not 1_000 <= self.sample_rate <= _MAX_RATE[self.codec]:
            raise ConfigError(
                f"sample_rate = {self.sample_rate} must be 1000 to {_MAX_RATE[self.codec]} Hz "
                f"for codec {self.codec}."
            )

    def encode(self, pcm: npt.NDArray[np.int16]) -> tuple[bytes | memoryview, ...]:
        """Return the audio file that holds `pcm`, in parts, so that no long track is copied."""
        if self.codec == "wav":
            return wav_header(len(pcm), self.sample_rate), pcm_bytes(pcm)
        file = io.BytesIO()
        if self.codec == "flac":
            soundfile.write(file, pcm, self.sample_rate, format="FLAC", subtype="PCM_16")
            return (file.getvalue(),)
        audio = pcm / np.float32(32_768)
        # libsndfile calls the setting compression, which is the opposite of quality.
        compression = 1 - self.quality / 10
        with soundfile.SoundFile(
            file, "w", self.sample_rate, 1, "VORBIS", format="OGG", compression_level=compression
        ) as vorbis:
            for start in range(0, len(audio), _BLOCK):
                vorbis.write(audio[start : start + _BLOCK])
        return (_without_serial_number(file.getvalue()),)


def wav_header(samples: int, sample_rate: int) -> bytes:
    """Return the 44 bytes of a canonical WAV header for `samples` 16-bit mono samples."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return riff + layout + struct.pack("<4sI", b"data", size)


def pcm_bytes(pcm: npt.NDArray[np.int16]) -> memoryview:
    """Return the bytes of `pcm`, little-endian on every machine, without a copy if possible."""
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
    """Return Ogg's CRC-32: zlib's polynomial with reversed bits, started from 0 and not inverted."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
