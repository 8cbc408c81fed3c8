"""Stretches of audio that a network hears crop by crop: of a shard, of a decoded file, or of a waveform."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import soxr

from siamusic_fast.audio.decode import DecodeConfig, decode_file
from siamusic_fast.audio.pcm import Int16, Samples, to_int16
from siamusic_fast.audio.store import Store
from siamusic_fast.config import CropConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import MAX_CROPS
from siamusic_fast.pipelines.plan import Spans, even_positions, lengthened, nearest
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.pipelines.reader import Reader, fill_crop


@dataclass(frozen=True, kw_only=True)
class Piece:
    """16-bit mono audio that crops are cut from: a track, or a segment of one."""

    samples: int
    """Length in samples."""
    rate: int
    """Sample rate in Hz."""
    offset: float = 0.0
    """Second of the track at which it starts."""
    read: Callable[[Array, Int16], None]
    """Fills int16 [crops, samples of a crop] with the crops that start at the samples int64 [crops]."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.rate

    def starts(self, frontend: Frontend, config: CropConfig) -> Array:
        """Return the first samples of its crops, int64, as evaluation places them unless told otherwise."""
        crop = frontend.crop_samples(self.rate)
        spare: Array = lengthened(np.array([self.samples]), frontend, self.rate) - crop
        if config.hop_seconds is not None:
            hop = config.hop_seconds * self.rate
            return nearest(np.arange(int(spare[0] / hop) + 1), np.array(hop))
        crops = config.crops or min(-(-self.samples // crop), MAX_CROPS)
        return nearest(even_positions(crops), spare)


def shard_piece(reader: Reader, track: int, samples: int, rate: int, offset: float) -> Piece:
    """Return the track number `track` of `reader`."""

    def read(starts: Array, out: Int16) -> None:
        rows = len(starts)
        spans = Spans(
            tracks=np.full(rows, track), starts=starts, samples=np.full(rows, out.shape[1], np.int64)
        )
        reader.read(spans, slice(0, rows), out)

    return Piece(samples=samples, rate=rate, offset=offset, read=read)


def file_piece(store: Store, path: str, frontend: Frontend) -> Piece:
    """Decode a file as `shard` does, at the sample rate of `frontend`. Raises `AudioError`."""
    rate = frontend.mel.sample_rate
    pcm = decode_file(store, path, DecodeConfig(sample_rate=rate, min_seconds=0.0)).pcm
    return _pcm_piece(pcm.length, rate, pcm.read, frontend)


def wave_piece(wave: Samples, sample_rate: int, frontend: Frontend) -> Piece:
    """Resample a waveform, full scale being 1, and round it to 16 bits, as decoding does."""
    rate = frontend.mel.sample_rate
    if sample_rate != rate:
        wave = soxr.resample(wave, sample_rate, rate, quality="HQ")
    pcm, _ = to_int16(wave)
    return _pcm_piece(len(pcm), rate, lambda start, stop: pcm[start:stop], frontend)


def _pcm_piece(
    samples: int, rate: int, read_samples: Callable[[int, int], Int16], frontend: Frontend
) -> Piece:
    def copy(start: int, out: Int16) -> None:
        out[:] = read_samples(start, start + len(out))

    fill = partial(fill_crop, length=samples, read=copy, repeats=frontend.short_tracks == "repeat")

    def read(starts: Array, out: Int16) -> None:
        for start, crop in zip(starts.tolist(), out, strict=True):
            fill(crop, start)

    return Piece(samples=samples, rate=rate, read=read)
