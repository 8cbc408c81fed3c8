"""One audio file in, mono 16-bit samples out, or the reason why not."""

import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from siamusic_fast.audio.downmix import Mixer, Mixing, mono_blocks
from siamusic_fast.audio.ffmpeg import AudioFile, Block, NotAudioError
from siamusic_fast.audio.pcm import MOST_CLIPPED, MOST_SAMPLES, Pcm, PcmCollector, Samples, is_silent
from siamusic_fast.audio.store import Store
from siamusic_fast.errors import ConfigError, DataError

REASONS = {
    "missing": "no such file, or one that cannot be read",
    "outside": "a link that leads out of the folder of audio, and is not followed",
    "empty": "a file of zero bytes",
    "duplicate": "the same bytes as another file, which is judged in its place",
    "not-audio": "FFmpeg does not know the format, finds nothing to decode, or the sample rate is absurd",
    "truncated": "decodes to less than the shortest length asked for, and its header promises more than that",
    "too-short": "decodes to less than the shortest length asked for",
    "too-long": "decodes to more than the longest length asked for",
    "damaged": "more of it is lost than asked for",
    "silent": "the peak is below -80 dBFS",
    "non-finite": "decodes to NaN or infinity somewhere",
    "error": "decoding it failed in a way that nobody foresaw",
}
"""Why a file is left out: code and meaning.

A file that is cut off, or damaged somewhere, is packed with a mark if what decodes of it has the shortest
length asked for, and no more of it is lost than asked for: it is sound, and worth as much as a clip that was
made so short. Only if the loss makes the difference between fit and unfit is the file `truncated`, which says
that another copy would help; `too-short` says that none would.
"""

REMEDIES = {
    "missing": "look for them, or take their rows out of the labels",
    "outside": "copy what they lead to into the folder, or give the folder above as SOURCE",
    "truncated": "get them again: another copy may be whole",
    "too-short": "--min-seconds takes shorter ones too",
    "too-long": "--max-hours takes longer ones too",
    "damaged": "get them again, or take them as they are with --max-damage 1",
    "error": "rejected.csv has the words of the failure: please report them",
}
"""What a user may do about files that are left out for a reason."""

RATES = (1_000, 1_000_000)
"""Lowest and highest sample rate, in Hz, that is taken seriously: a damaged header may say anything."""

SHORT_SECONDS = 0.08
"""A track that is shorter than its header promises by more than this, a frame of FLAC, is marked."""

_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EBADMSG, errno.EINVAL)
"""Errors that are a matter of one file rather than of the disk that it is on."""


class AudioError(DataError):
    """A file that cannot be used; `reason` is one of `REASONS`, `detail` says more in a few words."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path} cannot be used ({reason}): {detail}.")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a file has to be like to be packed."""

    sample_rate: int = 22_050
    """Sample rate of the packed audio, in Hz."""
    min_seconds: float = 5.0
    """Tracks that decode to less are left out."""
    max_hours: float = 12.0
    """Tracks that decode to more are left out. A header that promises more is not believed."""
    max_damage: float = 0.75
    """Share of a track that may be lost; see `Decoded.damage`."""

    def __post_init__(self) -> None:
        if not (self.min_seconds >= 0 and math.isfinite(self.min_seconds)):
            raise ConfigError(f"min_seconds = {self.min_seconds:g} must be 0 or more.")
        if not (math.isfinite(self.max_hours) and self.max_hours * 3600 >= max(self.min_seconds, 1e-3)):
            raise ConfigError(
                f"max_hours = {self.max_hours:g} must be above 0 and no less than min_seconds = "
                f"{self.min_seconds:g}."
            )
        if not 0 <= self.max_damage <= 1:
            raise ConfigError(f"max_damage = {self.max_damage:g} must be 0 to 1.")

    @property
    def max_samples(self) -> int:
        """Samples that a track may have in the shard."""
        return min(round(self.max_hours * 3600 * self.sample_rate), MOST_SAMPLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A track, and what there is to say about how it was decoded."""

    pcm: Pcm
    seconds: float
    """Length of `pcm`."""
    seconds_promised: float | None
    """Length according to the headers of the file; None if they say nothing."""
    damaged_packets: int
    """Packets of the file that did not decode, and are left out of `pcm`."""
    lost_share: float
    """Share of the bytes of all packets that is in those which did not decode."""
    mixing: Mixing
    """How `pcm` was made of the channels of the file."""
    bytes_read: int
    """Size of the file that it was decoded from."""

    def damage(self, demands: Demands) -> float:
        """Return the share that is lost: of the seconds promised, or of the bytes, whichever is larger."""
        promised = self.seconds_promised or 0.0
        if not self.seconds < promised <= demands.max_hours * 3600:
            return self.lost_share
        return max(self.lost_share, 1 - self.seconds / promised)


def decode(path: Path, sample_rate: int) -> Samples:
    """Return the audio of `path` as mono samples at `sample_rate` Hz, full scale being 1.

    FFmpeg decodes, channels are averaged, soxr resamples (HQ). Peaks of lossy formats may exceed 1. Raises
    `AudioError`: missing, empty or not-audio.
    """
    try:
        with path.open("rb") as file, _opened(path, file) as audio:
            blocks = [np.empty(0, np.float32), *mono_blocks(audio.blocks(), sample_rate, Mixer(Mixing()))]
            return np.concatenate(blocks)
    except OSError as error:
        raise AudioError(path, "missing", error.strerror or "cannot be read") from None


def decode_planned(store: Store, path: str, size: int, demands: Demands) -> Decoded:
    """Do the same as `decode_file` with a file that was there, and had `size` bytes, a while ago.

    Raises `DataError` if it is gone or has changed, or if its disk fails: that tells nothing about the file.
    """
    try:
        decoded = decode_file(store, path, demands)
    except AudioError as error:
        failure = error.__cause__
        if isinstance(failure, OSError) and failure.errno not in _OF_THE_FILE:
            raise _changed(path, error.detail) from None
        if (found := store.size(path)) != size:
            raise _changed(path, "it is gone" if found is None else f"{found} bytes, not {size}") from None
        raise
    if decoded.bytes_read != size:
        raise _changed(path, f"{decoded.bytes_read} bytes, not {size}")
    return decoded


def decode_file(store: Store, path: str, demands: Demands) -> Decoded:
    """Return the audio of `path` as a shard holds it: mono, 16-bit, and fit for training.

    The mean of all channels is taken, or the loudest alone where they cancel each other (`mono.CANCELED`).
    A track of which more than `MOST_CLIPPED` is beyond full scale, as float samples in the scale of integers
    are, is divided by its peak. Raises `AudioError` with any of `REASONS` but duplicate.
    """
    try:
        with store.open(path) as file:
            decoded = _decode(path, file, demands)
    except AudioError:
        raise
    except OSError as error:
        raise AudioError(path, "missing", error.strerror or "cannot be read") from error
    except Exception as error:
        raise AudioError(path, "error", f"{type(error).__name__}: {error}".rstrip(": ")) from None
    _judge(path, decoded, demands)
    return decoded


def _decode(path: str, file: BinaryIO, demands: Demands) -> Decoded:
    """Decode a file once, and once more if what is heard then asks for another way of mixing."""
    mixing = Mixing()
    decoded, mixer, heard = _decode_as(path, file, demands, mixing)
    channel = mixer.loudest_if_cancelled()
    if channel is not None:
        mixing = Mixing(channel=channel)
        decoded, _, heard = _decode_as(path, file, demands, mixing)
    if heard.clipped > MOST_CLIPPED * heard.length:
        mixing = Mixing(channel=channel, gain=32_767 / 32_768 / heard.peak)
        decoded, _, _ = _decode_as(path, file, demands, mixing)
    return decoded


def _decode_as(
    path: str, file: BinaryIO, demands: Demands, mixing: Mixing
) -> tuple[Decoded, Mixer, PcmCollector]:
    mixer, heard = Mixer(mixing), PcmCollector()
    with _opened(path, file) as audio:
        for block in mono_blocks(_checked(path, audio.blocks()), demands.sample_rate, mixer):
            _add(path, heard, block)
            if heard.length > demands.max_samples:
                longest = demands.max_samples / demands.sample_rate / 3600
                raise AudioError(path, "too-long", f"more than {longest:.4g} h")
        seconds = heard.length / demands.sample_rate
        decoded = Decoded(
            pcm=heard.result(),
            seconds=seconds,
            seconds_promised=audio.promised_seconds(seconds),
            damaged_packets=audio.damaged_packets,
            lost_share=audio.lost_share,
            mixing=mixing,
            bytes_read=audio.bytes_read,
        )
    return decoded, mixer, heard


def _opened(path: Path | str, file: BinaryIO) -> AudioFile:
    file.seek(0)
    if not file.read(1):
        raise AudioError(path, "empty", "0 bytes")
    try:
        return AudioFile(file)
    except NotAudioError as error:
        raise AudioError(path, "not-audio", str(error)) from None


def _checked(path: str, blocks: Iterator[Block]) -> Iterator[Block]:
    for block in blocks:
        if not RATES[0] <= block.sample_rate <= RATES[1]:
            detail = f"sample rate of {block.sample_rate} Hz, {RATES[0]} to {RATES[1]} Hz expected"
            raise AudioError(path, "not-audio", detail)
        yield block


def _add(path: str, heard: PcmCollector, block: Samples) -> None:
    try:
        heard.add(block)
    except ValueError as error:
        raise AudioError(path, "non-finite", str(error)) from None
    except OSError as error:
        detail = f"no room for its samples ({error.strerror}): set TMPDIR to a larger disk"
        raise AudioError(path, "error", detail) from None


def _judge(path: str, decoded: Decoded, demands: Demands) -> None:
    """Raise `AudioError` if a track is not what `demands` asks for."""
    seconds, promised = decoded.seconds, decoded.seconds_promised or 0.0
    needed = f"at least {demands.min_seconds:g} s needed"
    if not decoded.pcm.length:
        if promised:
            raise AudioError(path, "truncated", f"nothing left of {promised:.2f} s")
        raise AudioError(path, "not-audio", "nothing to decode")
    if seconds < demands.min_seconds:
        if promised >= demands.min_seconds:
            raise AudioError(path, "truncated", f"{seconds:.2f} s left of {promised:.2f} s, {needed}")
        raise AudioError(path, "too-short", f"{seconds:.2f} s, {needed}")
    damage = decoded.damage(demands)
    if damage > demands.max_damage:
        detail = f"{damage:.0%} of it is lost, {demands.max_damage:.0%} at most: see --max-damage"
        raise AudioError(path, "damaged", detail)
    if is_silent(decoded.pcm.peak):
        of_what = "the mean of its channels" if decoded.mixing.channel is None else "its loudest channel"
        raise AudioError(path, "silent", f"the peak of {of_what} is {decoded.pcm.peak} of 32768")


def _changed(path: str, what: str) -> DataError:
    return DataError(
        f"{path} changed or went away while packing ({what}): when it is back, the same command goes on; "
        f"if it has changed for good, --force starts over."
    )
