"""One audio file in, mono samples out, or the reason why not."""

import errno
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from siamusic_fast.errors import DataError
from siamusic_fast.shards.store import Store

REASONS = {
    "missing": "no such file, or one that cannot be read",
    "empty": "a file of zero bytes",
    "duplicate": "the same bytes as another file, which is packed in its place",
    "not-audio": "libsndfile does not know the format, finds nothing to decode, or the header is absurd",
    "truncated": "decodes to less than the shortest length asked for, and its header promises more than that",
    "too-short": "decodes to less than the shortest length asked for",
    "silent": "the peak is below -80 dBFS",
    "non-finite": "decodes to NaN or infinity somewhere",
}
"""Why a file is left out: code and meaning.

A file that is cut off, or damaged somewhere, is packed if what decodes of it before that place has the
shortest length asked for: it is sound, and worth as much as a clip that was made so short. Only if the loss
makes the difference between fit and unfit is the file `truncated`, which says that another copy would help;
`too-short` says that none would.
"""

RATES = (1_000, 1_000_000)
"""Lowest and highest sample rate, in Hz, that is taken seriously: a damaged header may say anything."""

MOST_VALUES = 2**31
"""Samples of all channels that a file may hold by its header: 6.7 hours of stereo at 44.1 kHz.

This and `MOST_SAMPLES` belong to the format: what is packed does not depend on how much memory there is.
"""

MOST_SAMPLES = 2**30 - 1
"""Samples that a track may have in a shard, where 16-bit audio fits into the 4 GiB of a WAV file."""

SILENCE = 1e-4
"""Peak, relative to full scale, below which a track is silent: -80 dBFS, three steps of 16-bit audio."""

_BLOCK = 4096
"""Frames at a time when looking for the place where a file is damaged."""
_UNKNOWN_SIZE = 2**31 - 1
"""From here on, the size in a RIFF or AIFF header is what a writer puts there that cannot go back."""
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EBADMSG, errno.EINVAL)
"""Errors that are a matter of one file rather than of the disk that it is on."""


class AudioError(DataError):
    """A file that cannot be used; `reason` is one of `REASONS`, `detail` says more in a few words."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path} cannot be used ({reason}): {detail}.")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Pcm:
    """A track in 16 bits."""

    samples: npt.NDArray[np.int16]
    clipped: npt.NDArray[np.intp]
    """Places of the samples that did not fit into 16 bits, in ascending order."""
    bytes_read: int = 0
    """Size of the file that it was decoded from."""


@dataclass(frozen=True, slots=True)
class _Audio:
    mono: npt.NDArray[np.float32]
    promised_seconds: float
    """Length according to the header; 0 if it says nothing."""
    bytes_read: int


def decode(path: Path, sample_rate: int) -> npt.NDArray[np.float32]:
    """Return the audio of `path` as mono samples at `sample_rate` Hz, full scale being 1.

    libsndfile decodes, channels are averaged, soxr resamples (HQ). Peaks of lossy formats may exceed 1.
    Raises `AudioError`: missing, empty, not-audio, truncated (nothing left at all) or non-finite; `DataError`
    if memory does not suffice.
    """
    try:
        with path.open("rb") as file:
            return _decode(file, path, sample_rate).mono
    except OSError as error:
        raise AudioError(path, "missing", error.strerror or "cannot be read") from None
    except MemoryError:
        raise _too_much(path) from None


def decode_planned(store: Store, path: str, size: int, sample_rate: int, min_seconds: float) -> Pcm:
    """Do the same as `decode_pcm` with a file that was there, and had `size` bytes, a while ago.

    Raises `DataError` if it is gone or has changed, or if its disk fails: that tells nothing about the file.
    """
    try:
        pcm = decode_pcm(store, path, sample_rate, min_seconds)
    except AudioError as error:
        failure = error.__cause__
        if isinstance(failure, OSError) and failure.errno not in _OF_THE_FILE:
            raise _changed(path, error.detail) from None
        if (found := store.size(path)) != size:
            raise _changed(path, "it is gone" if found is None else f"{found} bytes, not {size}") from None
        raise
    if pcm.bytes_read != size:
        raise _changed(path, f"{pcm.bytes_read} bytes, not {size}")
    return pcm


def decode_pcm(store: Store, path: str, sample_rate: int, min_seconds: float) -> Pcm:
    """Return the audio of `path` as a shard holds it: mono, 16-bit, and fit for training.

    Raises `AudioError` with any of `REASONS` but duplicate, and `DataError` if memory does not suffice.
    """
    try:
        return _decode_pcm(store, path, sample_rate, min_seconds)
    except MemoryError:
        raise _too_much(path) from None


def _decode_pcm(store: Store, path: str, sample_rate: int, min_seconds: float) -> Pcm:
    try:
        with store.open(path) as file:
            audio = _decode(file, path, sample_rate)
    except OSError as error:
        raise AudioError(path, "missing", error.strerror or "cannot be read") from error
    seconds = len(audio.mono) / sample_rate
    if seconds < min_seconds:
        if audio.promised_seconds >= min_seconds:
            detail = (
                f"{seconds:.2f} s left of {audio.promised_seconds:.2f} s, at least {min_seconds:g} s needed"
            )
            raise AudioError(path, "truncated", detail)
        raise AudioError(path, "too-short", f"{seconds:.2f} s, at least {min_seconds:g} s needed")
    pcm = to_pcm(audio.mono)
    if is_silent(pcm.samples):
        raise AudioError(path, "silent", f"peak {peak(pcm.samples)} of 32768")
    return Pcm(pcm.samples, pcm.clipped, audio.bytes_read)


def to_pcm(audio: npt.NDArray[np.float32]) -> Pcm:
    """Return `audio` in 16 bits: times 32,768, rounded half to even, peaks clipped; no dither."""
    with np.errstate(over="ignore"):
        scaled = audio * np.float32(32_768)
    np.rint(scaled, out=scaled)
    clipped = np.empty(0, np.intp)
    if scaled.max(initial=0) > 32_767 or scaled.min(initial=0) < -32_768:
        clipped = np.flatnonzero((scaled > 32_767) | (scaled < -32_768))
        scaled.clip(-32_768, 32_767, out=scaled)
    return Pcm(scaled.astype(np.int16), clipped)


def is_silent(samples: npt.NDArray[np.int16]) -> bool:
    """Return whether nothing in `samples` exceeds `SILENCE`."""
    return peak(samples) < SILENCE * 32_768


def peak(samples: npt.NDArray[np.int16]) -> int:
    """Return the largest magnitude in `samples`: 0 to 32,768."""
    return max(int(samples.max(initial=0)), -int(samples.min(initial=0)))


def _decode(file: BinaryIO, path: Path | str, sample_rate: int) -> _Audio:
    head = file.read(8)
    if not head:
        raise AudioError(path, "empty", "0 bytes")
    size = file.seek(0, os.SEEK_END)
    try:
        with _silent_stderr, _open_sound(file) as sound:
            rate = sound.samplerate
            promised = sound.frames
            _check_header(sound, path, sample_rate)
            audio = _read(sound, file)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, "not-audio", error.error_string.rstrip(".")) from None
    promised_seconds = max(promised, len(audio) * _promised_share(head, size)) / rate
    if not len(audio):
        if promised:
            raise AudioError(path, "truncated", f"nothing left of {promised_seconds:.2f} s")
        raise AudioError(path, "not-audio", "nothing to decode")
    mono = _downmix(audio)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, "HQ")
    if not (np.isfinite(mono.max(initial=0)) and np.isfinite(mono.min(initial=0))):
        raise AudioError(path, "non-finite", "NaN or infinity among the samples")
    return _Audio(mono, promised_seconds, size)


def _check_header(sound: soundfile.SoundFile, path: Path | str, sample_rate: int) -> None:
    """Raise `AudioError` if what `sound` promises is absurd, before anything is made of that size."""
    rate, frames, channels = sound.samplerate, sound.frames, sound.channels
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(path, "not-audio", f"sample rate of {rate} Hz, {RATES[0]} to {RATES[1]} Hz expected")
    if not 0 <= frames * channels <= MOST_VALUES:
        detail = f"its header promises {frames} x {channels} samples, {MOST_VALUES} at most"
        raise AudioError(path, "not-audio", detail)
    samples = frames * sample_rate // rate + 1
    if samples > MOST_SAMPLES:
        detail = f"its header promises {samples} samples at {sample_rate} Hz, {MOST_SAMPLES} at most"
        raise AudioError(path, "not-audio", detail)


def _open_sound(file: BinaryIO) -> soundfile.SoundFile:
    """Open `file` from its start, by its descriptor if it has one: calls to Python take a tenth longer."""
    file.seek(0)
    try:
        descriptor = file.fileno()
    except OSError:  # in memory
        return soundfile.SoundFile(file)
    os.lseek(descriptor, 0, os.SEEK_SET)  # `file` reads ahead
    return soundfile.SoundFile(descriptor, closefd=False)


def _read(sound: soundfile.SoundFile, file: BinaryIO) -> npt.NDArray[np.float32]:
    """Return all of `sound`, float32 [frames, channels], or what comes before it is damaged."""
    try:
        # In one call: libsndfile seeks after each read, which starts its MP3 decoder afresh.
        audio = sound.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, MemoryError) as error:  # there may be less than the header promises
        blocks = [np.empty((0, sound.channels), np.float32)]
        with _open_sound(file) as again, suppress(soundfile.LibsndfileError):
            while len(block := again.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        if len(blocks) == 1 and not isinstance(error, MemoryError):
            raise
        audio = np.concatenate(blocks)
    return audio  # type: ignore[no-any-return]


def _promised_share(head: bytes, size: int) -> float:
    """Return how many times as long a file should be, by the header of its container; 1 if it is whole.

    libsndfile itself tells what an MP3 or FLAC header promises, but cuts RIFF and AIFF to what is there.
    """
    if head[:4] not in (b"RIFF", b"FORM"):
        return 1
    promised = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big") + 8
    return 1 if promised >= _UNKNOWN_SIZE else max(1, promised / size)


def _changed(path: str, what: str) -> DataError:
    return DataError(
        f"{path} changed or went away while packing ({what}): when it is back, the same command goes on; "
        f"if it has changed for good, --force starts over."
    )


def _too_much(path: Path | str) -> DataError:
    return DataError(
        f"{path} needs more memory to be decoded than there is: close other programs or use fewer --workers; "
        f"the same command goes on."
    )


def _downmix(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average `audio` [frames, channels], channel by channel: 10 times as fast as `mean` here."""
    channels = audio.T
    if len(channels) == 1:
        mono: npt.NDArray[np.float32] = channels[0]
        return mono
    with np.errstate(over="ignore", invalid="ignore"):
        total: npt.NDArray[np.float32] = channels[0] + channels[1]
        for channel in channels[2:]:
            total += channel
    total /= np.float32(len(channels))
    return total


class _SilentStderr:
    """Sends file descriptor 2 nowhere while at least one thread is inside.

    libsndfile's MP3 decoder writes its notes there, past Python's `sys.stderr`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = -1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                os.dup2(self._saved, 2)
                os.close(self._saved)


_silent_stderr = _SilentStderr()
