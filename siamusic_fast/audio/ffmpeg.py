"""Decodes audio files of any format with FFmpeg, block by block. The files are not trusted."""

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame, format_dtypes
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from siamusic_fast.audio.mending import RIFX, lacks_index, mended_beginning
from siamusic_fast.audio.ogg import links, missing_at_end
from siamusic_fast.audio.stated_length import promised_seconds

Channels = list[npt.NDArray[np.float32]]
"""Samples of each channel, of equal length, full scale being 1."""

FORMATS = (
    *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "avr", "caf", "dsf", "dts", "eac3", "flac"),
    *("flv", "iff", "ircam", "loas", "matroska", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "nistsphere"),
    *("ogg", "oma", "paf", "pvf", "rm", "sox", "tak", "tta", "voc", "w64", "wav", "wv"),
)
"""FFmpeg's names of the formats that may be opened. None of them leads to other files, as playlists do."""

_CODECS_WITH_CHECKSUMS = ("flac", "tta", "wavpack")
"""Lossless codecs. A packet whose checksum is wrong is damaged, and is not decoded to noise."""

_TAGS = (b"ID3", b"TAG", b"APE", b"LYR")
"""First bytes of metadata between the frames of an MP3, which does not decode and is no damage."""

MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""Limits of the sample rate in Hz. A damaged header may have any value."""

_BLOCK_SAMPLES = 32_768
"""A block has at least so many samples, all channels together. They fit into the cache of a core."""
_READ_BYTES = 65_536
_MAX_OFFSET = 2**48
"""Largest offset in a file that FFmpeg may ask for. A damaged header may lead it anywhere."""
_MAX_ERRORS = 10_000
"""After so many errors in one place, the rest of a file is not decoded."""

_WITHOUT_GAPS = ("aac", "ac3", "eac3")
"""Formats that are nothing but packets. What is between them is lost, and FFmpeg does not count it."""


class NotAudioError(Exception):
    """A file that FFmpeg cannot open, or that has no audio, or none with a possible sample rate."""


class CutOffError(NotAudioError):
    """A file that lacks the part without which nothing in it can be found."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive samples of a file."""

    sample_rate: int
    """Sample rate in Hz. It may change within a file, as in two MP3s that were joined."""
    channels: Channels


@dataclass(slots=True)
class PacketCounts:
    """How much has been decoded so far, and how much was lost."""

    damaged: int = 0
    """Packets that did not decode."""
    decoded_bytes: int = 0
    lost_bytes: int = 0

    @property
    def lost_share(self) -> float:
        """Share of the bytes of all packets that is in damaged ones."""
        return self.lost_bytes / max(1, self.lost_bytes + self.decoded_bytes)

    def lose(self, size: int) -> None:
        """Count a packet that did not decode. Before the first that does, its bytes may be anything."""
        self.damaged += 1
        if self.decoded_bytes:
            self.lost_bytes += size


class AudioFile:
    """A file that is decoded as it is read, to be used in a `with`; `blocks` gives its audio once.

    Damage costs the packets that do not decode; `counts` has them so far. Memory depends neither on headers
    nor on the length of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the headers. Raises `NotAudioError`, or `OSError` if the file itself cannot be read."""
        self.bytes_read = file.seek(0, os.SEEK_END)
        """Size of the file."""
        self._missing_at_end = missing_at_end(file)
        self.counts = PacketCounts()
        if _begins_with(file, RIFX):
            self._open_mended(file, NotAudioError("a WAV with big-endian numbers of a rare kind"))
            return
        edges = [*links(file), self.bytes_read]
        self._ranges = [_FileRange(file, start, end) for start, end in itertools.pairwise(edges)]
        try:
            self._streams = [_Stream(self._ranges[0], self.counts)]
        except NotAudioError as error:
            if lacks_index(file):
                words = "it ends before its index (moov), or its writer did not finish"
                raise CutOffError(words) from None
            self._open_mended(file, error)

    def _open_mended(self, file: BinaryIO, error: NotAudioError) -> None:
        """Open `file` with another beginning, or raise `error` if there is none."""
        mended = mended_beginning(file)
        if not mended:
            raise error
        beginning, start = mended
        self._ranges = [_FileRange(file, start, self.bytes_read, beginning)]
        self._streams = [_Stream(self._ranges[0], self.counts)]

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams:
            stream.close()

    def promised_seconds(self, decoded: float) -> float | None:
        """Return the seconds that the headers promise, see `stated_length`, after `decoded` seconds."""
        promised = [stream.promised_seconds(decoded) for stream in self._streams]
        known = [seconds for seconds in promised if seconds is not None]
        return sum(known) if known and len(known) == len(self._ranges) else None

    def blocks(self) -> Iterator[Block]:
        """Yield all that decodes, in order.

        Raises `OSError` if the file itself cannot be read, `NotAudioError` for an impossible sample rate.
        """
        yield from self._streams[0].blocks()
        for link in self._ranges[1:]:
            self._streams[-1].close()
            try:
                self._streams.append(_Stream(link, self.counts))
            except NotAudioError:
                self.counts.lose(link.size)
            else:
                yield from self._streams[-1].blocks()
        if self._missing_at_end:
            self.counts.lose(self._missing_at_end)


def _begins_with(file: BinaryIO, magic: bytes) -> bool:
    file.seek(0)
    return file.read(len(magic)) == magic


class _Stream:
    """The first stream of audio in a file, or in a link of a chained Ogg file."""

    def __init__(self, file: "_FileRange", counts: PacketCounts) -> None:
        self._file = file
        self._counts = counts
        self._packet_bytes = 0
        self._file.seek(0)
        try:
            # Without a name, the ending of the file tells FFmpeg nothing: a copy decodes as its original.
            container = av.open(
                cast("io.BufferedReader", self._file),
                options=_options(),
                metadata_errors="replace",
                buffer_size=_READ_BYTES,
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._file.raise_failure()
            # FFmpeg's own words, without the name that it gives to a file that has none.
            words = getattr(error, "strerror", None) or type(error).__name__
            raise NotAudioError(f"FFmpeg does not know its format: {words}") from None
        self._container = cast(InputContainer, container)
        self._format = container.format.name
        streams = self._container.streams.audio
        if not streams or (codec := streams[0].codec_context) is None:
            container.close()
            raise NotAudioError(
                "FFmpeg has no decoder for its audio" if streams else "it has no stream of audio"
            )
        self._stream = streams[0]
        self._stated = self._container.duration and self._container.duration / av.time_base
        if self._stream.duration is not None and self._stream.time_base is not None:
            self._stated = float(self._stream.duration * self._stream.time_base)
        codec.thread_count = 1
        if codec.name in _CODECS_WITH_CHECKSUMS:
            codec.options = {"err_detect": "crccheck+explode"}

    def close(self) -> None:
        self._container.close()

    def promised_seconds(self, decoded: float) -> float | None:
        return promised_seconds(cast(BinaryIO, self._file), self._format, self._stated, decoded)

    def blocks(self) -> Iterator[Block]:
        queue, layout = AudioFifo(), None
        for frame in self._frames():
            before, layout = layout, (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if layout != before:
                yield from _flush(queue)
                queue = AudioFifo()
            frame.pts = None  # where packets are lost, the queue would refuse those after them
            queue.write(frame)
            if queue.samples * frame.layout.nb_channels >= _BLOCK_SAMPLES:
                yield from _flush(queue)
        yield from _flush(queue)

    def _frames(self) -> Iterator[AudioFrame]:
        """Yield all frames that decode. FFmpeg reports no lost frames of FLAC: gaps in their numbers do."""
        expected: int | None = None
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                if packet.size and bytes(packet)[:3] not in _TAGS:
                    self._counts.lose(packet.size)
                continue
            self._counts.decoded_bytes += packet.size
            for frame in frames:
                if self._format == "flac":
                    start = frame.pts if frame.pts is not None else expected
                    if start is not None and expected is not None and start > expected:
                        self._counts.lose(0)
                    expected = None if start is None else start + frame.samples
                yield frame

        if self._counts.damaged and self._format in _WITHOUT_GAPS:
            self._counts.lost_bytes += max(0, self._file.size - self._packet_bytes)

    def _packets(self) -> Iterator["Packet[AudioStream]"]:
        """Yield the packets of the stream. One that cannot be read is skipped."""
        errors, place = 0, -1
        while errors < _MAX_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    self._packet_bytes += packet.size
                    yield packet
                self._file.raise_failure()
                return
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                if not errors:
                    self._counts.lose(0)
                errors = errors + 1 if self._file.tell() == place else 1
                place = self._file.tell()


class _FileRange:
    """A part of a file that FFmpeg reads, behind a beginning that stands for what is before it.

    If the file itself cannot be read, FFmpeg is told that it ends, and `raise_failure` raises the error.
    """

    def __init__(self, file: BinaryIO, start: int, end: int, beginning: bytes = b"") -> None:
        self._file = file
        self._beginning = beginning
        self._offset = start - len(beginning)
        self._place = 0
        self._failure: OSError | None = None
        self.size = end - self._offset
        """Size in bytes."""

    def read(self, size: int) -> bytes:
        content = self._beginning[self._place :][:size]
        try:
            if not content:
                self._file.seek(self._offset + self._place)
                content = self._file.read(max(0, min(size, self.size - self._place)))
        except OSError as error:
            self._failure = error
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence] + offset
        if not 0 <= place <= _MAX_OFFSET:
            return -1
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def raise_failure(self) -> None:
        if self._failure:
            raise self._failure


@cache
def _options() -> dict[str, str]:
    """Return options that let FFmpeg use no protocols, only `FORMATS`, and only decoders of audio."""
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


def _flush(queue: AudioFifo) -> Iterator[Block]:
    """Empty `queue`, and yield its content if there is any."""
    frame = queue.read()
    if frame is None:
        return
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise NotAudioError(f"sample rate of {frame.sample_rate} Hz, {MIN_RATE} to {MAX_RATE} Hz expected")
    yield Block(frame.sample_rate, [_as_float(channel) for channel in _channels(frame)])


def _channels(frame: AudioFrame) -> Iterator[npt.NDArray[Any]]:
    """Yield the samples of each channel, without a copy."""
    count, dtype = frame.layout.nb_channels, format_dtypes[frame.format.name]
    planes: Any = frame.planes
    if frame.format.is_planar:
        yield from (np.frombuffer(plane, dtype, frame.samples) for plane in planes)
    else:
        yield from np.frombuffer(planes[0], dtype, frame.samples * count).reshape(-1, count).T


def _as_float(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return `samples` of any type that FFmpeg has, as float32 with a full scale of 1."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore"):
        return samples.astype(np.float32, copy=False)
