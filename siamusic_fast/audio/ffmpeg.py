"""Audio files of any format, decoded by FFmpeg block by block; the files are not trusted."""

import io
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from siamusic_fast.audio.ogg import links
from siamusic_fast.audio.stated_length import promised_seconds

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

_BEGINNINGS = re.compile(rb"fLaC|OggS\0|RIFF.{4}WAVE|FORM.{4}AIF[FC]", re.DOTALL)
"""What files begin with that FFmpeg knows by their first bytes alone, so that junk before them hides them."""

_BLOCK = 131_072
"""Samples of all channels that are handed on at a time, at least."""
_READ = 65_536
"""Bytes that FFmpeg reads at a time."""
_FARTHEST = 2**48
"""Places in a file that FFmpeg may ask for, which a damaged header may put anywhere."""
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

    What is damaged costs the packets that do not decode, which `damaged_packets` and `lost_share` count while
    `blocks` goes on. Neither a header nor the length of the file changes how much memory is used.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the headers. Raises `NotAudioError`, or `OSError` if the file itself cannot be read."""
        self.bytes_read = file.seek(0, os.SEEK_END)
        """Size of the file."""
        edges = [*links(file), self.bytes_read]
        self._windows = [_Window(file, start, end) for start, end in itertools.pairwise(edges)]
        self._tally = _Tally()
        try:
            first = _Part(self._windows[0], self._tally)
        except NotAudioError:
            start = _start_behind_junk(file)
            if not start:
                raise
            self._windows = [_Window(file, start, self.bytes_read)]
            first = _Part(self._windows[0], self._tally)
        self._parts = [first]

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error: object) -> None:
        for part in self._parts:
            part.close()

    @property
    def damaged_packets(self) -> int:
        """Packets that did not decode so far."""
        return self._tally.damaged_packets

    @property
    def lost_share(self) -> float:
        """Share of the bytes of all packets so far that is in those which did not decode."""
        return self._tally.lost_bytes / max(1, self._tally.lost_bytes + self._tally.sound_bytes)

    def promised_seconds(self, decoded: float) -> float | None:
        """Return what its headers promise, see `promise`, when `decoded` seconds have been decoded."""
        promised = [part.promised_seconds(decoded) for part in self._parts]
        known = [seconds for seconds in promised if seconds is not None]
        return sum(known) if known and len(known) == len(self._windows) else None

    def blocks(self) -> Iterator[Block]:
        """Yield all that decodes, in order. Raises `OSError` if the file itself cannot be read."""
        yield from self._parts[0].blocks()
        for window in self._windows[1:]:
            self._parts[-1].close()
            try:
                part = _Part(window, self._tally)
            except NotAudioError:
                self._tally.lose(window.size)
            else:
                self._parts.append(part)
                yield from part.blocks()


@dataclass(slots=True)
class _Tally:
    """What has been decoded so far, and what has not."""

    damaged_packets: int = 0
    sound_bytes: int = 0
    lost_bytes: int = 0

    def lose(self, size: int) -> None:
        """Count a packet that did not decode; before the first that does, its bytes may be anything."""
        self.damaged_packets += 1
        if self.sound_bytes:
            self.lost_bytes += size


class _Part:
    """What FFmpeg decodes in one go: a file, or a link of a chained Ogg file."""

    def __init__(self, file: "_Window", tally: _Tally) -> None:
        self._file = file
        self._tally = tally
        self._next: int | None = None
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

    def close(self) -> None:
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
        self._format = self._container.format.name
        self._stated = self._container.duration and self._container.duration / av.time_base
        if self._stream.duration is not None and self._stream.time_base is not None:
            self._stated = float(self._stream.duration * self._stream.time_base)
        codec.thread_count = 1
        if codec.name in _CHECKED:
            codec.options = {"err_detect": "crccheck+explode"}

    def promised_seconds(self, decoded: float) -> float | None:
        return promised_seconds(cast(BinaryIO, self._file), self._format, self._stated, decoded)

    def blocks(self) -> Iterator[Block]:
        queue, shape = AudioFifo(), None
        for frame in self._frames():
            if self._format == "flac":
                self._find_gap(frame)
            if _shape(frame) != shape:
                yield from _rest(queue)
                queue, shape = AudioFifo(), _shape(frame)
            frame.pts = None  # where packets are lost, the queue would refuse those after them
            queue.write(frame)
            if queue.samples * frame.layout.nb_channels >= _BLOCK:
                yield from _rest(queue)
        yield from _rest(queue)

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                if packet.size and bytes(packet)[:3] not in _TAGS:
                    self._tally.lose(packet.size)
                continue
            self._tally.sound_bytes += packet.size
            yield from frames

    def _find_gap(self, frame: AudioFrame) -> None:
        """Count frames of FLAC that are lost before `frame`: FFmpeg says nothing, but their numbers tell."""
        if frame.pts is not None:
            if self._next is not None and frame.pts > self._next:
                self._tally.lose(0)
            self._next = frame.pts
        if self._next is not None:
            self._next += frame.samples

    def _packets(self) -> Iterator["Packet[AudioStream]"]:
        """Yield the packets of the stream; where one cannot be read, those after it."""
        errors = 0
        while errors < _MOST_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    yield packet
                self._file.raise_failure()
                return
            except (av.error.FFmpegError, ValueError):
                self._file.raise_failure()
                self._tally.lose(0)
                errors += 1


class _Window:
    """What FFmpeg may do with a part of a file; the error of the file itself is kept for whoever asks.

    Nothing is raised through FFmpeg: to it, a failure to read is the end of the file.
    """

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._failure: OSError | None = None
        self.size = end - start
        """In bytes."""

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(max(0, min(size, self.size - self.tell())))
        except OSError as error:
            self._failure = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}[whence]
        if not 0 <= base + offset <= _FARTHEST:
            return -1
        return self._file.seek(self._start + base + offset) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def raise_failure(self) -> None:
        if self._failure:
            raise self._failure


def _start_behind_junk(file: BinaryIO) -> int:
    """Return where one of `_BEGINNINGS` is in `file`, 0 if it is nowhere near the beginning."""
    file.seek(0)
    found = _BEGINNINGS.search(file.read(_READ))
    return found.start() if found else 0


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


def _rest(queue: AudioFifo) -> Iterator[Block]:
    """Yield what is in `queue`, if there is anything, and empty it."""
    frame = queue.read()
    if frame is None:
        return
    rate, count, _ = _shape(frame)
    samples = frame.to_ndarray()
    channels = samples if frame.format.is_planar else samples.reshape(-1, count).T
    yield Block(rate, _as_float(channels))


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
