"""Decodes an audio file to mono 16-bit samples, or says why it cannot be used."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np

from siamusic_fast.audio.downmix import Downmix, Downmixer, mono_blocks
from siamusic_fast.audio.ffmpeg import AudioFile, CutOffError, NotAudioError
from siamusic_fast.audio.pcm import MAX_CLIPPED_SHARE, MAX_SAMPLES, Pcm, PcmCollector, Samples, is_silent
from siamusic_fast.audio.store import Store
from siamusic_fast.config.fields import Between, check_settings
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.storage.remote import StorageError

REASONS = {
    "missing": "no such file, or one that cannot be read",
    "outside": "a link that leads out of the folder of audio, and is not followed",
    "empty": "a file of zero bytes",
    "duplicate": "the same bytes as another file, which is judged in its place",
    "not-audio": "FFmpeg does not know the format, finds nothing to decode, or the sample rate is absurd",
    "truncated": "decodes to less than --min-seconds, and its header promises more, or lacks its index",
    "too-short": "decodes to less than --min-seconds",
    "too-long": "decodes to more than --max-hours",
    "damaged": "more of it is lost than --max-damage allows",
    "silent": "the peak is below -80 dBFS",
    "non-finite": "decodes to NaN or infinity somewhere",
    "error": "decoding it failed in a way that nobody foresaw",
}
"""Codes of the reasons for which files are left out, and what they mean.

A file that is cut off, or damaged somewhere, is packed with a mark if enough of it decodes: it is worth as
much as a clip that was made so short. `truncated` says that another copy may help, `too-short` that none can.
"""

REMEDIES = {
    "missing": "look for them, or take their rows out of the labels",
    "outside": "copy what they lead to into the folder, or give the folder above as SOURCE",
    "empty": "get them again, or delete them",
    "duplicate": "nothing: their music is packed once",
    "not-audio": "get them again, or delete them: no player knows them either",
    "truncated": "get them again: another copy may be whole",
    "too-short": "--min-seconds takes shorter ones too",
    "too-long": "--max-hours takes longer ones too",
    "damaged": "get them again, or take them as they are with --max-damage 1",
    "silent": "delete them: there is nothing to hear",
    "non-finite": "export them again as 16-bit or 24-bit integers",
    "error": "rejected.csv has the words of the failure: please report them",
}
"""What a user may do about files that were left out, by the code of the reason."""

SHORT_SECONDS = 0.08
"""A track is marked if more than this is missing of what its header promises. It is a frame of FLAC."""

_ERRORS_OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EBADMSG, errno.EINVAL)
"""Errors in opening a file that say nothing about the disk that it is on."""


class AudioError(DataError):
    """A file that cannot be used; `reason` is one of `REASONS`, `detail` says more in a few words."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path} cannot be used ({reason}): {detail}.")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """What files are decoded to, and which are left out."""

    sample_rate: int = 22_050
    """Sample rate of the audio, in Hz."""
    min_seconds: Annotated[float, Between(0)] = 5.0
    """Shortest track that is packed, in seconds."""
    max_hours: float = 12.0
    """Longest file that is packed, in hours."""
    max_damage: Annotated[float, Between(0, 1)] = 0.75
    """Largest share of a file that may be lost, from 0 to 1. Other damaged files are packed and marked."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not (math.isfinite(self.max_hours) and self.max_hours * 3600 >= max(self.min_seconds, 1e-3)):
            raise ConfigError(
                f"max_hours = {self.max_hours:g} must be above 0 and no less than min_seconds = "
                f"{self.min_seconds:g}."
            )

    @property
    def max_samples(self) -> int:
        """Samples that a track may have in the shard."""
        return min(round(self.max_hours * 3600 * self.sample_rate), MAX_SAMPLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A track, and how it was decoded."""

    pcm: Pcm
    seconds: float
    """Length of `pcm`."""
    seconds_promised: float | None
    """Length according to the headers of the file. It is None if they say nothing."""
    damaged_packets: int
    """Packets of the file that did not decode, and are left out of `pcm`."""
    lost_share: float
    """Share of the bytes of the file that is in damaged packets."""
    downmix: Downmix
    """How `pcm` was made of the channels of the file."""
    bytes_read: int
    """Size of the file that the track was decoded from."""

    def damage(self, config: DecodeConfig) -> float:
        """Return the share that is lost of the seconds promised, or of the bytes if that is more."""
        promised = self.seconds_promised or 0.0
        if not self.seconds < promised <= config.max_hours * 3600:
            return self.lost_share
        return max(self.lost_share, 1 - self.seconds / promised)


def decode(path: Path, sample_rate: int) -> Samples:
    """Return the audio of `path` as mono samples at `sample_rate` Hz, full scale being 1.

    FFmpeg decodes, channels are averaged, soxr resamples (HQ). Peaks of lossy formats may exceed 1. Raises
    `AudioError`: missing, empty or not-audio.
    """
    with _as_audio_errors(path), path.open("rb") as file, _open_audio(path, file) as audio:
        blocks = mono_blocks(audio.blocks(), sample_rate, Downmixer(Downmix()))
        return np.concatenate([np.empty(0, np.float32), *blocks])


def decode_planned(store: Store, path: str, size: int, config: DecodeConfig) -> Decoded:
    """Decode a file as `decode_file` does. It had `size` bytes when the shards were planned.

    Raises `DataError` if the file is gone or has changed, or if its disk fails: then it cannot be judged.
    """
    try:
        decoded = decode_file(store, path, config)
    except AudioError as error:
        failure = error.__cause__
        if isinstance(failure, OSError) and failure.errno not in _ERRORS_OF_ONE_FILE:
            raise _changed(path, error.detail) from None
        if (found := store.size_now(path)) != size:
            raise _changed(path, "it is gone" if found is None else f"{found} bytes, not {size}") from None
        raise
    if decoded.bytes_read != size:
        raise _changed(path, f"{decoded.bytes_read} bytes, not {size}")
    return decoded


def decode_file(store: Store, path: str, config: DecodeConfig) -> Decoded:
    """Return the audio of `path` as a shard holds it: mono, 16-bit, and fit for training.

    The mean of all channels is taken, or the loudest alone where they cancel each other, see
    `downmix.CANCELED`. A track of which more than `MAX_CLIPPED_SHARE` is beyond full scale, as float samples
    in the scale of integers are, is divided by its peak. Raises `AudioError` with any of `REASONS` but
    duplicate.
    """
    with failures_of(path), _as_audio_errors(path), store.open(path) as file:
        downmix: Downmix | None = Downmix()
        while downmix:
            decoded, downmix = _decode_as(path, file, config, downmix)
    _judge(path, decoded, config)
    return decoded


@contextmanager
def failures_of(path: str) -> Iterator[None]:
    """Raise whatever goes wrong with the file `path`, among it `MemoryError`, as `AudioError`."""
    try:
        yield
    except (AudioError, StorageError):  # the one is judged, the other says nothing about the file
        raise
    except Exception as error:
        raise AudioError(path, "error", f"{type(error).__name__}: {error}".rstrip(": ")) from None


def _decode_as(
    path: str, file: BinaryIO, config: DecodeConfig, downmix: Downmix
) -> tuple[Decoded, Downmix | None]:
    """Decode a file. The second result is a better downmix for it, or None if `downmix` is right."""
    downmixer, collector = Downmixer(downmix), PcmCollector()
    with _open_audio(path, file) as audio:
        for block in mono_blocks(audio.blocks(), config.sample_rate, downmixer):
            _collect(path, collector, block)
            if collector.length > config.max_samples:
                hours = config.max_samples / config.sample_rate / 3600
                raise AudioError(path, "too-long", f"more than {hours:.4g} h")
        seconds = collector.length / config.sample_rate
        decoded = Decoded(
            pcm=collector.result(),
            seconds=seconds,
            seconds_promised=audio.promised_seconds(seconds),
            damaged_packets=audio.counts.damaged,
            lost_share=audio.counts.lost_share,
            downmix=downmix,
            bytes_read=audio.bytes_read,
        )
    if (channel := downmixer.loudest_if_canceled()) is not None:
        return decoded, Downmix(channel=channel)
    if downmix.gain == 1 and collector.clipped > MAX_CLIPPED_SHARE * collector.length:
        return decoded, replace(downmix, gain=32_767 / 32_768 / collector.peak)
    return decoded, None


@contextmanager
def _as_audio_errors(path: Path | str) -> Iterator[None]:
    """Raise errors in opening and reading `path` as `AudioError`."""
    try:
        yield
    except NotAudioError as error:
        reason = "truncated" if isinstance(error, CutOffError) else "not-audio"
        raise AudioError(path, reason, str(error)) from None
    except OSError as error:
        raise AudioError(path, "missing", error.strerror or "cannot be read") from error


def _open_audio(path: Path | str, file: BinaryIO) -> AudioFile:
    file.seek(0)
    if not file.read(1):
        raise AudioError(path, "empty", "0 bytes")
    return AudioFile(file)


def _collect(path: str, collector: PcmCollector, block: Samples) -> None:
    try:
        collector.add(block)
    except ValueError as error:
        raise AudioError(path, "non-finite", str(error)) from None
    except OSError as error:
        detail = f"no room for its samples ({error.strerror}): set TMPDIR to a larger disk"
        raise AudioError(path, "error", detail) from None


def _judge(path: str, decoded: Decoded, config: DecodeConfig) -> None:
    """Raise `AudioError` if a track is not what `config` asks for."""
    seconds, promised = decoded.seconds, decoded.seconds_promised or 0.0
    needed = f"at least {config.min_seconds:g} s needed"
    damage = decoded.damage(config)
    if not decoded.pcm.length and promised:
        raise AudioError(path, "truncated", f"nothing left of {promised:.2f} s")
    if not decoded.pcm.length:
        raise AudioError(path, "not-audio", "nothing to decode")
    if seconds < config.min_seconds <= promised:
        raise AudioError(path, "truncated", f"{seconds:.2f} s left of {promised:.2f} s, {needed}")
    if seconds < config.min_seconds:
        raise AudioError(path, "too-short", f"{seconds:.2f} s, {needed}")
    if damage > config.max_damage:
        detail = f"{damage:.0%} of it is lost, {config.max_damage:.0%} at most: see --max-damage"
        raise AudioError(path, "damaged", detail)
    if is_silent(decoded.pcm.peak):
        of_what = "the mean of its channels" if decoded.downmix.channel is None else "its loudest channel"
        raise AudioError(path, "silent", f"the peak of {of_what} is {decoded.pcm.peak} of 32768")


def _changed(path: str, what: str) -> DataError:
    return DataError(
        f"{path} changed or went away while packing ({what}): when it is back, the same command goes on; "
        f"if it has changed for good, --force starts over."
    )
