"""The augmentations of Kim, Hong, Lee 2022, Table 1, and what every augmentation is.

An augmentation is a frozen dataclass: a probability `p`, decided for every sample of a batch on its own, and
its parameters, with the bounds of each. `draw` makes everything that is random, in numpy, and says as one of
the `changes` what the engines are to do.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.changes import (
    MAX_BOXES,
    PITCH_GRID,
    Erase,
    Flip,
    ImageChange,
    MixImages,
    MixWaves,
    Paste,
    Speed,
    WaveChange,
)
from siamusic_fast.pipelines.draws import Array, Draws

_OCTAVE = 12
"""Semitones."""
_MAX_STRETCH = 4.0
_MAX_ALPHA = 1e6
_MAX_SIZE = 100_000


def bounded(default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """Return a field whose value must lie between `low` and `high`, or `above` `low`."""
    whole = isinstance(default, int)
    return field(default=default, metadata={"whole": whole, "low": low, "high": high, "above": above})


def probability(default: float) -> Any:
    """Return the field `p` of an augmentation."""
    return bounded(default, 0, 1)


def part(default: float) -> Any:
    """Return a field that is a part of a whole."""
    return bounded(default, 0, 1, above=True)


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """One step of a recipe."""

    mixes: ClassVar[bool] = False
    """Whether it adds something of another track, so that the label no longer says all."""

    p: float
    """Probability that a sample is changed."""

    def __post_init__(self) -> None:
        for parameter in fields(self):
            if bounds := parameter.metadata:
                _check(parameter.name, getattr(self, parameter.name), type(self).__name__, **bounds)

    def check(self, mel: MelConfig) -> None:  # noqa: B027 (most fit any features)
        """Raise `ConfigError` if the change does not fit the features."""


@dataclass(frozen=True, kw_only=True)
class WaveAugmentation(Augmentation):
    """A step before the spectrogram: on the waveform, or on its tempo and pitch."""

    @property
    def max_rate_drawn(self) -> float:
        """Highest tempo that `draw` may ask for."""
        return 1.0

    @property
    def max_pitch_drawn(self) -> float:
        """Highest pitch that `draw` may ask for."""
        return 1.0

    @abstractmethod
    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        """Draw, for every sample of a batch, whether it is changed and how."""


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation(Augmentation):
    """A step after the spectrogram, on normalized log-mels."""

    @abstractmethod
    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        """Draw, for every sample of a batch, whether it is changed and how."""


@dataclass(frozen=True, kw_only=True)
class TimeStretch(WaveAugmentation):
    """Plays faster or slower at the same pitch."""

    p: float = probability(0.6)
    min_rate: float = bounded(0.6, 1 / _MAX_STRETCH, _MAX_STRETCH)
    """Lowest rate; below 1 is slower."""
    max_rate: float = bounded(1.5, 1 / _MAX_STRETCH, _MAX_STRETCH)
    """Highest rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("min_rate", self.min_rate, "max_rate", self.max_rate, self)

    @property
    def max_rate_drawn(self) -> float:
        return max(self.max_rate, 1.0)

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        rate = draws.uniform(self.min_rate, self.max_rate)
        return Speed(rate=np.where(draws.coin(self.p), rate, 1.0))


@dataclass(frozen=True, kw_only=True)
class PitchShift(WaveAugmentation):
    """Moves the pitch at the same tempo, evenly on the scale of semitones."""

    p: float = probability(0.6)
    semitones: float = bounded(4.0, 0, _OCTAVE)
    """Largest shift, up or down."""

    @property
    def max_pitch_drawn(self) -> float:
        return round(PITCH_GRID * 2 ** (self.semitones / _OCTAVE)) / PITCH_GRID

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        pitch = 2 ** (draws.uniform(-self.semitones, self.semitones) / _OCTAVE)
        grid_pitch = np.rint(PITCH_GRID * pitch).astype(np.int64)
        return Speed(grid_pitch=np.where(draws.coin(self.p), grid_pitch, PITCH_GRID))


@dataclass(frozen=True, kw_only=True)
class WaveMixup(WaveAugmentation):
    """Adds another track: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, _MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""

    def draw(self, draws: Draws, mel: MelConfig) -> WaveChange:
        on, partner, weight = draws.coin(self.p), draws.partners(), 1 - draws.beta(self.alpha)
        own = np.arange(draws.count)
        return MixWaves(partner=np.where(on, partner, own), weight=np.where(on, weight, 0.0))


@dataclass(frozen=True, kw_only=True)
class Mixup(ImageAugmentation):
    """Mixes two spectrograms: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, _MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        on, partner, weight = draws.coin(self.p), draws.partners(), 1 - draws.beta(self.alpha)
        return MixImages(partner=partner, weight=np.where(on, weight, 0.0))


@dataclass(frozen=True, kw_only=True)
class CutMix(ImageAugmentation):
    """Replaces a rectangle with the partner's [Yun 2019, CutMix].

    The rectangle has the image's proportions, an area of 1 - w with w from Beta(alpha, alpha), and its
    center anywhere in the image; what lies outside is cut off.
    """

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, _MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        on, partner, side = draws.coin(self.p), draws.partners(), np.sqrt(1 - draws.beta(self.alpha))
        height, width = np.floor(side * mel.n_mels), np.floor(side * mel.frames)
        boxes = _boxes(draws, mel, height[:, None], width[:, None], number=1)
        return Paste(partner=partner, boxes=drawn_boxes(boxes, on))


@dataclass(frozen=True, kw_only=True)
class Mask(ImageAugmentation):
    """Sets a band of mels or, as often, a band of frames to the mean.

    Widths are uniform from 1 up to a fraction of the image: for mels that of SpecAugment's LibriSpeech
    policy (27 of 80) [Park 2019], for frames its 100 frames on the 431 of a crop.
    """

    p: float = probability(0.4)
    max_mels: float = part(27 / 80)
    """Widest band of mels, as a part of all."""
    max_frames: float = part(100 / 431)
    """Widest band of frames, as a part of all."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        on, over_mels = draws.coin(self.p), draws.coin(0.5)
        rows = row_boxes(*draws.bands(mel.n_mels, self.max_mels), mel)
        columns = column_boxes(*draws.bands(mel.frames, self.max_frames), mel)
        return Erase(boxes=drawn_boxes(np.where(over_mels[:, None, None], rows, columns), on))


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(ImageAugmentation):
    """Turns time around."""

    p: float = probability(0.8)

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        return Flip(mels=np.zeros(draws.count, dtype=bool), frames=draws.coin(self.p))


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(ImageAugmentation):
    """Turns the mel bands upside down."""

    p: float = probability(0.8)

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        return Flip(mels=draws.coin(self.p), frames=np.zeros(draws.count, dtype=bool))


@dataclass(frozen=True, kw_only=True)
class CutOut(ImageAugmentation):
    """Sets square holes to the mean [DeVries 2017].

    A hole's center lies anywhere in the image and what lies outside is cut off, as there. Several small
    holes instead of one large one suit an image nine times as wide as it is high.
    """

    p: float = probability(0.8)
    holes: int = bounded(4, 1, MAX_BOXES)
    """Number of holes."""
    size: int = bounded(16, 1, _MAX_SIZE)
    """Side of a hole, in mels and frames."""

    def draw(self, draws: Draws, mel: MelConfig) -> ImageChange:
        on, size = draws.coin(self.p), np.full((draws.count, self.holes), self.size)
        return Erase(boxes=drawn_boxes(_boxes(draws, mel, size, size, number=self.holes), on))


def drawn_boxes(boxes: Array, on: Array) -> Array:
    """Return `boxes` [batch, number, 4], int64, empty for the samples that are not changed."""
    return np.where(on[:, None, None], boxes, 0).astype(np.int64)


def row_boxes(begin: Array, end: Array, mel: MelConfig) -> Array:
    """Return boxes over all frames of the mels from `begin` to `end`, [batch, number] each."""
    return np.stack([begin, end, np.zeros_like(begin), np.full_like(begin, mel.frames)], axis=-1)


def column_boxes(begin: Array, end: Array, mel: MelConfig) -> Array:
    """Return boxes over all mels of the frames from `begin` to `end`, [batch, number] each."""
    return np.stack([np.zeros_like(begin), np.full_like(begin, mel.n_mels), begin, end], axis=-1)


def check_order(low_name: str, low: float, high_name: str, high: float, step: Augmentation) -> None:
    """Raise `ConfigError` if the lower end of a range of `step` is above the upper one."""
    if low > high:
        kind = type(step).__name__
        raise ConfigError(f"{low_name} = {low:g} of {kind} must not be above {high_name} = {high:g}.")


def _check(name: str, value: float, kind: str, *, whole: bool, low: float, high: float, above: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        number = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} = {value!r} of {kind} must be {number}.")
    if not (low < value <= high if above else low <= value <= high):
        least = "above" if above else "at least"
        raise ConfigError(f"{name} = {value:g} of {kind} must be {least} {low:g} and at most {high:g}.")


def _boxes(draws: Draws, mel: MelConfig, height: Array, width: Array, *, number: int) -> Array:
    """Draw the centers of `number` boxes; return them as [batch, number, 4]."""
    top = np.floor(draws.uniform(0, mel.n_mels, number)) - height // 2
    left = np.floor(draws.uniform(0, mel.frames, number)) - width // 2
    return np.stack([top, top + height, left, left + width], axis=-1)
