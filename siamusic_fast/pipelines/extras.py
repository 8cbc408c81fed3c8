"""Augmentations beyond the paper, off by default. Adding one is as short as these are."""

from dataclasses import dataclass

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.augmentations import (
    ImageAugmentation,
    WaveAugmentation,
    check_part,
    column_boxes,
    drawn_boxes,
    row_boxes,
)
from siamusic_fast.pipelines.changes import (
    MAX_BOXES,
    AddNoise,
    AddToMels,
    Array,
    Erase,
    ImageChange,
    Scale,
    Warp,
    WaveChange,
    cell_edges,
)
from siamusic_fast.pipelines.draws import Draws

_MAX_DECIBELS = 100.0
_MAX_RISE = 10.0


@dataclass(frozen=True, kw_only=True)
class Gain(WaveAugmentation):
    """Makes the waveform louder or softer, evenly on the scale of decibels."""

    p: float = 0.5
    decibels: float = 6.0
    """Largest change, up or down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decibels <= _MAX_DECIBELS:
            raise ConfigError(
                f"decibels = {self.decibels:g} of Gain must lie between 0 and {_MAX_DECIBELS:g}."
            )

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        factor = 10 ** (draws.uniform(-self.decibels, self.decibels) / 20)
        return Scale(factor=np.where(draws.coin(self.p), factor, 1.0))


@dataclass(frozen=True, kw_only=True)
class Noise(WaveAugmentation):
    """Adds white Gaussian noise at a signal-to-noise ratio that is drawn evenly in decibels."""

    p: float = 0.5
    min_snr: float = 10.0
    """Lowest signal-to-noise ratio, in dB."""
    max_snr: float = 40.0
    """Highest signal-to-noise ratio, in dB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -_MAX_DECIBELS <= self.min_snr <= self.max_snr <= _MAX_DECIBELS:
            raise ConfigError(
                f"min_snr = {self.min_snr:g} of Noise must not be above max_snr = {self.max_snr:g}, and both "
                f"at most {_MAX_DECIBELS:g} either way."
            )

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

    p: float = 0.5
    steps: int = 5
    """Cells along each axis."""
    limit: float = 0.3
    """Largest change of the size of a cell, as a part of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not 0 <= self.limit < 1:
            raise ConfigError(
                f"steps = {self.steps} of GridDistortion must be at least 1 and limit = {self.limit:g} "
                f"at least 0 and below 1."
            )

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

    p: float = 0.5
    min_mels: float = 0.6
    """Smallest part of the mels."""
    min_frames: float = 0.6
    """Smallest part of the frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("min_mels", self.min_mels, self)
        check_part("min_frames", self.min_frames, self)

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        return Warp(
            on=draws.coin(self.p),
            mels=_part(draws, mel.n_mels, self.min_mels),
            frames=_part(draws, mel.frames, self.min_frames),
        )


@dataclass(frozen=True, kw_only=True)
class Tilt(ImageAugmentation):
    """Tilts the spectrum: adds a straight line over the mels, as another room or another master would.

    In decibels, it turns about the middle band: what the lowest gains, the highest loses.
    """

    p: float = 0.5
    max_rise: float = 0.5
    """Largest change of the outermost mels, in standard deviations of the features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_rise <= _MAX_RISE:
            raise ConfigError(
                f"max_rise = {self.max_rise:g} of Tilt must lie between 0 and {_MAX_RISE:g} deviations."
            )

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        rise = draws.uniform(-self.max_rise, self.max_rise)
        on = draws.coin(self.p)
        return AddToMels(amount=np.where(on, rise, 0.0)[:, None] * np.linspace(-1, 1, mel.n_mels))


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(ImageAugmentation):
    """Sets bands of mels to the mean, two of up to 27 in 80: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = 0.5
    count: int = 2
    """Number of bands, at most 64."""
    max_mels: float = 27 / 80
    """Widest band, as a part of all mels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("max_mels", self.max_mels, self)
        _check_count(self)

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        bands = row_boxes(*draws.bands(mel.n_mels, self.max_mels, self.count), mel)
        return Erase(boxes=drawn_boxes(bands, draws.coin(self.p)))


@dataclass(frozen=True, kw_only=True)
class TimeMask(ImageAugmentation):
    """Sets bands of frames to the mean, two of up to 100: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = 0.5
    count: int = 2
    """Number of bands, at most 64."""
    max_frames: float = 100 / 431
    """Widest band, as a part of all frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("max_frames", self.max_frames, self)
        _check_count(self)

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        bands = column_boxes(*draws.bands(mel.frames, self.max_frames, self.count), mel)
        return Erase(boxes=drawn_boxes(bands, draws.coin(self.p)))


def _part(draws: Draws, extent: int, min_part: float) -> Array:
    """Draw begin and end of a part of an axis, [batch, 2]."""
    size = draws.uniform(min_part, 1) * extent
    begin = draws.uniform(0, 1) * (extent - size)
    return np.stack([begin, begin + size], axis=-1)


def _check_count(step: FrequencyMask | TimeMask) -> None:
    if not 1 <= step.count <= MAX_BOXES:
        raise ConfigError(f"count = {step.count} of {type(step).__name__} must be 1 to {MAX_BOXES}.")
