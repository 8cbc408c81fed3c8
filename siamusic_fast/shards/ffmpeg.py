"""Audio files of any format, decoded by FFmpeg block by block; the files are not trusted."""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from siamusic_fast.shards.promise import promised_seconds

Channels = npt.NDArray[np.float32]
"""Samples of shape [channels, frames], full scale being 1."""

FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "avr", "caf", "dsf", "dts", "eac3", "flac"),
    *("flv", "iff", "ircam", "loas", "matroska", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "nistsphere"),
    *("ogg", "oma", "paf", "pvf", "rm", "sox", "tak", "tta", "voc", "w64", "wav", "wv"),
)
"""FFmpeg's names of the formats that may be opened: none of them leads to other files, as playlists do."""

_CHECKED = ("flac", "tta", "wavpack")
"""Lossless codecs with checksums: a packet whose checksum is wrong is damaged, not decoded to noise."""

_TAGS = (b"ID3", b"TAG", b"APE", b"LYR")
"""What metadata between the frames of an MP3 begins with: it does not decode, and is no damage."""

_BLOCK = 65_536
"""Frames that are handed on at a time, at least."""
_READ = 65_536
"""Bytes that FFmpeg reads at a time."""
_MOST_ERRORS = 100
"""Errors in a row after which the rest of a file is given up."""


class NotAudioError(Exception):
    """A file that FFmpeg cannot open, or that has no audio."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive samples of a file."""

    sample_rate: int
    """In Hz; it may change within a file, as in two MP3s that were joined."""
    channels: Channels


class AudioFile:
    """A file that is decoded as it is read, to be used in a `with`; `blocks` gives its audio once.

    What is damaged costs the packets that do not decode. `damaged_packets` and `lost_share` count them while
    `blocks` goes on. Neither a header nor the length of the file changes how much memory is used.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the headers. Raises `NotAudioError`, or `OSError` if the file itself cannot be read."""
        self._file = _Watched(file)
        self.damaged_packets = 0
        """Packets that did not decode so far."""
        self._sound_bytes = 0
        self._lost_bytes = 0
        self._file.seek(0)
        try:
            # Without a name, the ending of the file tells FFmpeg nothing: a copy decodes as its original.
            container = av.open(
                cast("io.BufferedReader", self._file),
                options=_options(),
                metadata_errors="replace",
                buffer_size=_READ,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._file.raise_failure()
            raise NotAudioError(f"FFmpeg knows no audio format that this is: {_words(error)}") from None
        self._container = cast(InputContainer, container)
        try:
            self._prepare()
        except NotAudioError:
            self._container.close()
            raise

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def _prepare(self) -> None:
        """Choose the first stream of audio, and set its decoder up."""
        streams = self._container.streams.audio
        if not streams:
            raise NotAudioError("it has no stream of audio")
        self._stream = streams[0]
        codec = self._stream.codec_context
        if codec is None:
            raise NotAudioError("FFmpeg has no decoder for its audio")
        codec.thread_count = 1
        if codec.name in _CHECKED:
            codec.options = {"err_detect": "crccheck+explode"}

    @property
    def lost_share(self) -> float:
        """Share of the bytes read so far that is in packets which did not decode."""
        return self._lost_bytes / max(1, self._lost_bytes + self._sound_bytes)

    @property
    def bytes_read(self) -> int:
        """Size of the file."""
        return self._file.size()

    def promised_seconds(self, decoded: float) -> float | None:
        """Return what `promise.promised_seconds` says of the file, with `decoded` seconds decoded."""
        stated = None
        if self._stream.duration is not None and self._stream.time_base is not None:
            stated = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration is not None:
            stated = self._container.duration / av.time_base
        return promised_seconds(cast(BinaryIO, self._file), self._container.format.name, stated, decoded)

    def blocks(self) -> Iterator[Block]:
        """Yield all that decodes, in order. Raises `OSError` if the file itself cannot be read."""
        frames: list[AudioFrame] = []
        collected = 0
        for frame in self._frames():
            if frames and _shape(frame) != _shape(frames[0]):
                yield _join(frames)
                frames, collected = [], 0
            frames.append(frame)
            collected += frame.samples
            if collected >= _BLOCK:
                yield _join(frames)
                frames, collected = [], 0
        if frames:
            yield _join(frames)

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                self._lose(packet)
                continue
            self._sound_bytes += packet.size
            yield from frames

    def _lose(self, packet: "Packet[AudioStream]") -> None:
        if packet.size and bytes(packet)[:3] not in _TAGS:
            self.damaged_packets += 1
            self._lost_bytes += packet.size

    def _packets(self) -> Iterator["Packet[AudioStream]"]:
        """Yield the packets of the stream; where one cannot be read, those after it."""
        errors = 0
        while errors < _MOST_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    yield packet
                return
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                self.damaged_packets += 1
                errors += 1


class _Watched:
    """What FFmpeg may do with a file, which keeps the error of the file itself for whoever asks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._failure = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._file.seek(0, io.SEEK_END)

    def raise_failure(self) -> None:
        if self._failure:
            raise self._failure


@cache
def _options() -> dict[str, str]:
    """Return what FFmpeg may use: no protocols, `FORMATS`, and decoders of audio."""
    decoders = []
    for name in sorted(av.codec.codecs_available):
        with suppress(ValueError):  # it encodes only
            if av.Codec(name, "r").type == "audio":
                decoders.append(name)
    return {
        "protocol_whitelist": "",
        "format_whitelist": ",".join(FORMATS),
        "codec_whitelist": ",".join(decoders),
    }


def _shape(frame: AudioFrame) -> tuple[int, int, str]:
    return frame.sample_rate, frame.layout.nb_channels, frame.format.name


def _join(frames: list[AudioFrame]) -> Block:
    """Return `frames`, which are all of one rate, layout and sample format, as one block."""
    rate, count, _ = _shape(frames[0])
    planar = frames[0].format.is_planar
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    channels = samples if planar else samples.reshape(-1, count).T
    return Block(rate, _as_float(channels))


def _as_float(samples: npt.NDArray[Any]) -> Channels:
    """Return `samples` of any type that FFmpeg has, as float32 with a full scale of 1."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore"):
        return samples.astype(np.float32, copy=False)


def _words(error: Exception) -> str:
    """Return what FFmpeg says of a file, without the name that it gives to a file that has none."""
    return getattr(error, "strerror", None) or type(error).__name__
