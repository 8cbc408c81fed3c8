"""Audio in 16 bits, as shards hold it."""

import tempfile
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""Mono samples, full scale being 1."""

MOST_SAMPLES = 2**30 - 1
"""Samples that a track may have in a shard, where 16-bit audio fits into the 4 GiB of a WAV file.

This belongs to the format: what is packed does not depend on how much memory there is.
"""

SILENCE = 1e-4
"""Peak, relative to full scale, below which a track is silent: -80 dBFS, three steps of 16-bit audio."""

MOST_CLIPPED = 0.01
"""Share of the samples of a track that may be beyond full scale; of a track with more, see `decode`."""

_IN_MEMORY = 2**25
"""Samples of a track that are kept in memory, 64 MiB; a longer one goes to a temporary file."""


@dataclass(frozen=True, slots=True)
class Pcm:
    """Mono audio in 16 bits."""

    samples: npt.NDArray[np.int16]
    clipped: npt.NDArray[np.int64]
    """Places of the samples that did not fit into 16 bits, in ascending order."""


class PcmCollector:
    """Turns blocks of float32 into one `Pcm`, whose samples are on disk if they are many."""

    def __init__(self) -> None:
        self.length = 0
        """Samples so far."""
        self.clipped = 0
        """How many of them did not fit into 16 bits."""
        self.peak = 0.0
        """Largest magnitude so far, full scale being 1."""
        self._blocks: list[npt.NDArray[np.int16]] = []
        self._places: list[npt.NDArray[np.int64]] = []
        self._file: IO[bytes] | None = None

    def add(self, block: Samples) -> None:
        """Append `block`. Raises `ValueError` if it holds NaN or infinity, `OSError` if the disk is full."""
        highest, lowest = float(block.max(initial=0)), float(block.min(initial=0))
        if not np.isfinite(highest - lowest):
            raise ValueError("NaN or infinity among the samples")
        self.peak = max(self.peak, highest, -lowest)
        pcm = to_pcm(block)
        if len(pcm.clipped):
            self.clipped += len(pcm.clipped)
            # Beyond, the share is above MOST_CLIPPED however long the track is: the places are of no use.
            if self.clipped <= MOST_CLIPPED * MOST_SAMPLES:
                self._places.append(pcm.clipped + self.length)
        self.length += len(block)
        self._blocks.append(pcm.samples)
        if self._file or self.length > _IN_MEMORY:
            self._write()

    def _write(self) -> None:
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - `result` maps it
        for block in self._blocks:
            self._file.write(block.data.cast("B"))
        self._blocks = []

    def result(self) -> Pcm:
        """Return all that was added."""
        places = np.concatenate([np.empty(0, np.int64), *self._places])
        if self._file:
            self._file.flush()
            return Pcm(np.memmap(self._file, np.int16, "r"), places)
        return Pcm(np.concatenate([np.empty(0, np.int16), *self._blocks]), places)


def to_pcm(audio: Samples) -> Pcm:
    """Return `audio` in 16 bits: times 32,768, rounded half to even, peaks clipped; no dither."""
    with np.errstate(over="ignore"):
        scaled = audio * np.float32(32_768)
    np.rint(scaled, out=scaled)
    clipped = np.empty(0, np.int64)
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
