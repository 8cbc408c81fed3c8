"""Audio in 16 bits, as shards hold it."""

import tempfile
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""Mono samples, full scale being 1."""
Int16 = npt.NDArray[np.int16]

MAX_SAMPLES = 2**30 - 1
"""Samples that a track may have in a shard, where 16-bit audio fits into the 4 GiB of a WAV file.

This belongs to the format: what is packed does not depend on how much memory there is.
"""

MIN_PEAK = 1e-4
"""Peak, relative to full scale, below which a track is silent: -80 dBFS, three steps of 16-bit audio."""

MAX_CLIPPED_SHARE = 0.01
"""Share of the samples of a track that may be beyond full scale. `decode` rescales a track with more."""

_SCALE = 32_768

_MAX_SAMPLES_IN_MEMORY = 2**25
"""A longer track goes to a temporary file; this one takes 64 MiB."""


class Spool:
    """16-bit samples in a temporary file, which is gone with this object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)

    def append(self, block: Int16) -> None:
        """Append `block`. Raises `OSError` if the disk is full."""
        self._file.write(block.data.cast("B"))
        self._file.flush()

    def read(self, start: int, stop: int) -> Int16:
        """Return the samples from `start` to `stop`."""
        self._file.seek(2 * start)
        return np.frombuffer(self._file.read(2 * (stop - start)), np.int16)


@dataclass(frozen=True, slots=True)
class Pcm:
    """Mono audio in 16 bits, in memory or, if it is long, in a temporary file."""

    length: int
    """Number of samples."""
    peak: int
    """Largest magnitude of all samples: 0 to 32,768."""
    clipped: npt.NDArray[np.int64]
    """Places of the samples that did not fit into 16 bits, in ascending order."""
    source: Int16 | Spool
    """Holder of the samples."""

    def read(self, start: int, stop: int) -> Int16:
        """Return the samples from `start` to `stop`."""
        return self.source.read(start, stop) if isinstance(self.source, Spool) else self.source[start:stop]

    @property
    def samples(self) -> Int16:
        """All samples."""
        return self.read(0, self.length)


class PcmCollector:
    """Turns blocks of float32 into one `Pcm`, whose samples are on disk if they are many."""

    def __init__(self) -> None:
        self.length = 0
        """Samples so far."""
        self.clipped = 0
        """Samples so far that did not fit into 16 bits."""
        self._high = self._low = 0.0
        self._blocks: list[Int16] = []
        self._places: list[npt.NDArray[np.int64]] = []
        self._spool: Spool | None = None

    @property
    def peak(self) -> float:
        """Largest magnitude so far, full scale being 1."""
        return max(self._high, -self._low) / _SCALE

    def add(self, block: Samples) -> None:
        """Append `block`. Raises `ValueError` if it holds NaN or infinity, `OSError` if the disk is full."""
        scaled, high, low = _scaled(block)
        if not np.isfinite(high - low):
            raise ValueError("NaN or infinity among the samples")
        self._high, self._low = max(self._high, high), min(self._low, low)
        samples, clipped = _rounded(scaled, high, low)
        self.clipped += len(clipped)
        # With more, the share is too large however long the track is, and the places are of no use.
        if self.clipped <= MAX_CLIPPED_SHARE * MAX_SAMPLES:
            self._places.append(clipped + self.length)
        self.length += len(block)
        self._blocks.append(samples)
        if self._spool or self.length > _MAX_SAMPLES_IN_MEMORY:
            self._spool = self._spool or Spool()
            for waiting in self._blocks:
                self._spool.append(waiting)
            self._blocks = []

    def result(self) -> Pcm:
        """Return all that was added."""
        return Pcm(
            length=self.length,
            peak=max(min(round(self._high), 32_767), min(-round(self._low), 32_768)),
            clipped=np.concatenate([np.empty(0, np.int64), *self._places]),
            source=self._spool or np.concatenate([np.empty(0, np.int16), *self._blocks]),
        )


def to_int16(audio: Samples) -> tuple[Int16, npt.NDArray[np.int64]]:
    """Return `audio` in 16 bits, times 32,768, rounded half to even, and the places of what was clipped.

    There is no dither. The places are in ascending order.
    """
    return _rounded(*_scaled(audio))


def _scaled(audio: Samples) -> tuple[Samples, float, float]:
    """Return `audio` in the scale of 16 bits, a copy, its largest value and its smallest one."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = audio * np.float32(_SCALE)
    return scaled, float(scaled.max(initial=0)), float(scaled.min(initial=0))


def _rounded(scaled: Samples, high: float, low: float) -> tuple[Int16, npt.NDArray[np.int64]]:
    """Do the rest of `to_int16`, in place, with what `_scaled` returns."""
    np.rint(scaled, out=scaled)
    clipped = np.empty(0, np.int64)
    if round(high) > 32_767 or round(low) < -32_768:
        clipped = np.flatnonzero((scaled > 32_767) | (scaled < -32_768))
        scaled.clip(-32_768, 32_767, out=scaled)
    return scaled.astype(np.int16), clipped


def is_silent(peak: int) -> bool:
    """Return whether a track or segment with that `peak`, 0 to 32,768, is silent, see `MIN_PEAK`."""
    return peak < MIN_PEAK * 32_768


def peak(samples: Int16) -> int:
    """Return the largest magnitude in `samples`: 0 to 32,768."""
    return max(int(samples.max(initial=0)), -int(samples.min(initial=0)))
