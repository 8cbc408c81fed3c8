"""Augmentations beyond the paper, off by default. Adding one is as short as these are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.augmentations import (
    ImageAugmentation,
    WaveAugmentation,
    bounded,
    check_order,
    column_boxes,
    drawn_boxes,
    part,
    probability,
    row_boxes,
)
from siamusic_fast.pipelines.changes import (
    MAX_BOXES,
    AddNoise,
    Erase,
    ImageChange,
    ImageFunction,
    Warp,
    WaveChange,
    WaveFunction,
    cell_edges,
)
from siamusic_fast.pipelines.draws import Array, Draws

_MAX_DECIBELS = 100.0
_MAX_RISE = 10.0
_MAX_STEPS = 1_000


@dataclass(frozen=True, kw_only=True)
class Gain(WaveAugmentation):
    """Makes the waveform louder or softer, evenly on the scale of decibels."""

    p: float = probability(0.5)
    decibels: float = bounded(6.0, 0, _MAX_DECIBELS)
    """Largest change, up or down."""

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        factor = 10 ** (draws.uniform(-self.decibels, self.decibels) / 20)
        factor = np.where(draws.coin(self.p), factor, 1.0)[:, None]
        values = {"factor": factor.astype(np.float32)}
        return WaveFunction(values=values, dali=_multiplied, torch=_multiplied)


@dataclass(frozen=True, kw_only=True)
class Noise(WaveAugmentation):
    """Adds white Gaussian noise at a signal-to-noise ratio that is drawn evenly in decibels."""

    p: float = probability(0.5)
    min_snr: float = bounded(10.0, -_MAX_DECIBELS, _MAX_DECIBELS)
    """Lowest signal-to-noise ratio, in dB."""
    max_snr: float = bounded(40.0, -_MAX_DECIBELS, _MAX_DECIBELS)
    """Highest signal-to-noise ratio, in dB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("min_snr", self.min_snr, "max_snr", self.max_snr, self)

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        factor = 10 ** (draws.uniform(self.min_snr, self.max_snr) / -20)
        on, offset = draws.coin(self.p), draws.integers(noise.LENGTH)
        return AddNoise(factor=np.where(on, factor, 0.0), offset=offset)


@dataclass(frozen=True, kw_only=True)
class GridDistortion(ImageAugmentation):
    """Stretches and squeezes a grid of the image, each axis by itself, with its borders fixed.

    Cells of equal size in the result show cells of the original whose sizes differ by up to `limit` either
    way before they are fitted to the image. Steps and limit are the defaults of Albumentations, whose
    GridDistortion the paper's public code uses.
    """

    p: float = probability(0.5)
    steps: int = bounded(5, 1, _MAX_STEPS)
    """Cells along each axis."""
    limit: float = bounded(0.3, 0, 0.99)
    """Largest change of the size of a cell, as a part of it."""

    def check(self, mel: MelConfig) -> None:
        if self.steps > min(mel.n_mels, mel.frames):
            raise ConfigError(
                f"steps = {self.steps} of GridDistortion are more than the image has pixels: "
                f"{mel.n_mels} x {mel.frames}."
            )

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        return Warp(
            on=draws.coin(self.p),
            mels=self._edges(draws, mel.n_mels),
            frames=self._edges(draws, mel.frames),
        )

    def _edges(self, draws: Draws, extent: int) -> Array:
        sizes = np.diff(cell_edges(extent, self.steps))
        drawn = sizes * draws.uniform(1 - self.limit, 1 + self.limit, self.steps)
        edges = np.pad(np.cumsum(drawn, axis=1), ((0, 0), (1, 0)))
        return np.asarray(edges * (extent / edges[:, -1:]))


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(ImageAugmentation):
    """Enlarges a part of the image to the whole, as BYOL-A does [Niizumi 2021].

    How much is drawn for mels and for frames by themselves.
    """

    p: float = probability(0.5)
    min_mels: float = part(0.6)
    """Smallest part of the mels."""
    min_frames: float = part(0.6)
    """Smallest part of the frames."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        return Warp(
            on=draws.coin(self.p),
            mels=_drawn_part(draws, mel.n_mels, self.min_mels),
            frames=_drawn_part(draws, mel.frames, self.min_frames),
        )


@dataclass(frozen=True, kw_only=True)
class Tilt(ImageAugmentation):
    """Tilts the spectrum: adds a straight line over the mels, as another room or another master would.

    In decibels, it turns about the middle band: what the lowest gains, the highest loses.
    """

    p: float = probability(0.5)
    max_rise: float = bounded(0.5, 0, _MAX_RISE)
    """Largest change of the outermost mels, in standard deviations of the features."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        rise = draws.uniform(-self.max_rise, self.max_rise)
        line = np.where(draws.coin(self.p), rise, 0.0)[:, None] * np.linspace(-1, 1, mel.n_mels)
        values = {"line": line.astype(np.float32)[:, :, None, None]}
        return ImageFunction(values=values, dali=_raised, torch=_raised)


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(ImageAugmentation):
    """Sets bands of mels to the mean, two of up to 27 in 80: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = probability(0.5)
    count: int = bounded(2, 1, MAX_BOXES)
    """Number of bands."""
    max_mels: float = part(27 / 80)
    """Widest band, as a part of all mels."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        bands = row_boxes(*draws.bands(mel.n_mels, self.max_mels, self.count), mel)
        return Erase(boxes=drawn_boxes(bands, draws.coin(self.p)))


@dataclass(frozen=True, kw_only=True)
class TimeMask(ImageAugmentation):
    """Sets bands of frames to the mean, two of up to 100: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = probability(0.5)
    count: int = bounded(2, 1, MAX_BOXES)
    """Number of bands."""
    max_frames: float = part(100 / 431)
    """Widest band, as a part of all frames."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        bands = column_boxes(*draws.bands(mel.frames, self.max_frames, self.count), mel)
        return Erase(boxes=drawn_boxes(bands, draws.coin(self.p)))


def _multiplied(wave: Any, values: Mapping[str, Any]) -> Any:
    return wave * values["factor"]


def _raised(image: Any, values: Mapping[str, Any]) -> Any:
    return image + values["line"]


def _drawn_part(draws: Draws, extent: int, min_part: float) -> Array:
    """Draw begin and end of a part of an axis, [batch, 2]."""
    size = draws.uniform(min_part, 1) * extent
    begin = draws.uniform(0, 1) * (extent - size)
    return np.stack([begin, begin + size], axis=-1)
