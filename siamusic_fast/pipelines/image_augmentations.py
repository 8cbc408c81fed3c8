"""Augmentations of spectrograms as images: those of Kim, Hong, Lee 2022, Table 1, then others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augmentation import ImageAugmentation, bounded, fraction, probability
from siamusic_fast.pipelines.ops import (
    MAX_BOXES,
    Erase,
    Flip,
    ImageFunction,
    MixImages,
    Paste,
    Warp,
    cell_edges,
)
from siamusic_fast.pipelines.random_numbers import Array, RandomNumbers
from siamusic_fast.pipelines.wave_augmentations import MAX_ALPHA

_MAX_SIZE = 100_000
_MAX_RISE = 10.0
_MAX_STEPS = 1_000


@dataclass(frozen=True, kw_only=True)
class CutMix(ImageAugmentation):
    """Replaces a rectangle with the partner's [Yun 2019, CutMix].

    The rectangle has the proportions of the image, an area of 1 - w with w from Beta(alpha, alpha), and its
    center anywhere in the image. What lies outside the image is cut off.
    """

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""
    max_share: float = fraction(1.0)
    """Largest share of the partner in the area, to which what is drawn is scaled."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Paste:
        on, partner, area = rng.bernoulli(self.p), rng.partners(), 1 - rng.beta(self.alpha)
        side = np.sqrt(self.max_share * area)
        height, width = np.floor(side * mel.n_mels), np.floor(side * mel.frames)
        boxes = _centered_boxes(rng, mel, height[:, None], width[:, None])
        return Paste(partner=partner, boxes=_only_where(on, boxes))


@dataclass(frozen=True, kw_only=True)
class Mixup(ImageAugmentation):
    """Mixes two spectrograms: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""
    max_share: float = fraction(1.0)
    """Largest share of the partner, 1 - w; the shares that are drawn are scaled to it. 0.4 and alpha = 1 give
    shares that are uniform from 0 to 0.4, as in BYOL-A [Niizumi 2021]."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> MixImages:
        on, partner, share = rng.bernoulli(self.p), rng.partners(), 1 - rng.beta(self.alpha)
        return MixImages(partner=partner, weight=np.where(on, self.max_share * share, 0.0))


@dataclass(frozen=True, kw_only=True)
class Mask(ImageAugmentation):
    """Sets a band of mels or, equally often, a band of frames to the mean.

    Widths are uniform from 1 up to a fraction of the image: for mels that of SpecAugment's LibriSpeech
    policy (27 of 80) [Park 2019], for frames its 100 frames on the 431 of a crop.
    """

    p: float = probability(0.4)
    max_mels: float = fraction(27 / 80)
    """Widest band of mels, as a fraction of all mels."""
    max_frames: float = fraction(100 / 431)
    """Widest band of frames, as a fraction of all frames."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Erase:
        on, over_mels = rng.bernoulli(self.p), rng.bernoulli(0.5)
        mels, frames = _bands(rng, mel, 0, self.max_mels), _bands(rng, mel, 1, self.max_frames)
        return Erase(boxes=_only_where(on, np.where(over_mels[:, None, None], mels, frames)))


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(ImageAugmentation):
    """Reverses the order of the frames."""

    p: float = probability(0.8)

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Flip:
        return Flip(mels=np.zeros(rng.count, dtype=bool), frames=rng.bernoulli(self.p))


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(ImageAugmentation):
    """Reverses the order of the mel bands."""

    p: float = probability(0.8)

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Flip:
        return Flip(mels=rng.bernoulli(self.p), frames=np.zeros(rng.count, dtype=bool))


@dataclass(frozen=True, kw_only=True)
class CutOut(ImageAugmentation):
    """Sets square holes to the mean [DeVries 2017].

    The center of a hole lies anywhere in the image, and what lies outside the image is cut off, as in the
    paper. Several small holes instead of one large one suit an image nine times as wide as it is high.
    """

    p: float = probability(0.8)
    holes: int = bounded(4, 1, MAX_BOXES)
    """Number of holes."""
    size: int = bounded(16, 1, _MAX_SIZE)
    """Side of a hole, in mels and frames."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Erase:
        on, size = rng.bernoulli(self.p), np.full((rng.count, self.holes), self.size)
        return Erase(boxes=_only_where(on, _centered_boxes(rng, mel, size, size)))


@dataclass(frozen=True, kw_only=True)
class GridDistortion(ImageAugmentation):
    """Stretches and squeezes the cells of a grid, along each axis alone. The borders stay where they are.

    Cells of equal size in the result show cells of the original, whose sizes differ by up to `limit` either
    way before they are scaled to fill the image. The defaults are those of Albumentations, whose
    GridDistortion the paper's public code uses.
    """

    p: float = probability(0.5)
    steps: int = bounded(5, 1, _MAX_STEPS)
    """Number of cells along each axis."""
    limit: float = bounded(0.3, 0, 0.99)
    """Largest change of the size of a cell, as a fraction of it."""

    def check(self, mel: MelConfig) -> None:
        if self.steps > min(mel.n_mels, mel.frames):
            raise ConfigError(
                f"steps = {self.steps} of GridDistortion must be at most {min(mel.n_mels, mel.frames)}: the "
                f"image has {mel.n_mels} x {mel.frames} pixels."
            )

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Warp:
        on = rng.bernoulli(self.p)
        return Warp(on=on, mels=self._edges(rng, mel.n_mels), frames=self._edges(rng, mel.frames))

    def _edges(self, rng: RandomNumbers, extent: int) -> Array:
        sizes = np.diff(cell_edges(extent, self.steps))
        drawn = sizes * rng.uniform(1 - self.limit, 1 + self.limit, self.steps)
        edges = np.pad(np.cumsum(drawn, axis=1), ((0, 0), (1, 0)))
        return np.asarray(edges * (extent / edges[:, -1:]))


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(ImageAugmentation):
    """Enlarges a rectangle of the image to the whole image, as BYOL-A does [Niizumi 2021].

    Its extent in mels and its extent in frames are drawn separately.
    """

    p: float = probability(0.5)
    min_mels: float = fraction(0.6)
    """Smallest extent in mels, as a fraction of all mels."""
    min_frames: float = fraction(0.6)
    """Smallest extent in frames, as a fraction of all frames."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Warp:
        on = rng.bernoulli(self.p)
        mels, frames = ((mel.n_mels, self.min_mels), (mel.frames, self.min_frames))
        return Warp(on=on, mels=_random_interval(rng, *mels), frames=_random_interval(rng, *frames))


@dataclass(frozen=True, kw_only=True)
class Tilt(ImageAugmentation):
    """Adds a straight line over the mels, as another room or another master would tilt the spectrum.

    The line is 0 at the middle band, and opposite at the lowest and the highest.
    """

    p: float = probability(0.5)
    max_rise: float = bounded(0.5, 0, _MAX_RISE)
    """Largest change of the outermost mels, in standard deviations of the features."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> ImageFunction:
        rise = rng.uniform(-self.max_rise, self.max_rise)
        line = np.where(rng.bernoulli(self.p), rise, 0.0)[:, None] * np.linspace(-1, 1, mel.n_mels)
        values = {"line": line.astype(np.float32)[:, :, None, None]}
        return ImageFunction(values=values, dali=_raised, torch=_raised)


def _raised(image: Any, values: Mapping[str, Any]) -> Any:
    return image + values["line"]


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(ImageAugmentation):
    """Sets bands of mels to the mean, two of up to 27 in 80: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = probability(0.5)
    count: int = bounded(2, 1, MAX_BOXES)
    """Number of bands."""
    max_mels: float = fraction(27 / 80)
    """Widest band, as a fraction of all mels."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Erase:
        bands = _bands(rng, mel, 0, self.max_mels, self.count)
        return Erase(boxes=_only_where(rng.bernoulli(self.p), bands))


@dataclass(frozen=True, kw_only=True)
class TimeMask(ImageAugmentation):
    """Sets bands of frames to the mean, two of up to 100: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = probability(0.5)
    count: int = bounded(2, 1, MAX_BOXES)
    """Number of bands."""
    max_frames: float = fraction(100 / 431)
    """Widest band, as a fraction of all frames."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Erase:
        bands = _bands(rng, mel, 1, self.max_frames, self.count)
        return Erase(boxes=_only_where(rng.bernoulli(self.p), bands))


def _only_where(on: Array, boxes: Array) -> Array:
    """Return `boxes` [batch, number, 4], int64, empty for the samples that are not changed."""
    return np.where(on[:, None, None], boxes, 0).astype(np.int64)


def _centered_boxes(rng: RandomNumbers, mel: MelConfig, height: Array, width: Array) -> Array:
    """Draw the centers of boxes of this size, [batch, number] each; return the boxes, [batch, number, 4]."""
    top = np.floor(rng.uniform(0, mel.n_mels, height.shape[1])) - height // 2
    left = np.floor(rng.uniform(0, mel.frames, height.shape[1])) - width // 2
    return np.stack([top, top + height, left, left + width], axis=-1)


def _bands(rng: RandomNumbers, mel: MelConfig, axis: int, max_fraction: float, number: int = 1) -> Array:
    """Draw bands of mels (axis 0) or of frames (axis 1), as boxes over the whole other axis."""
    extents = mel.n_mels, mel.frames
    boxes = np.tile([0, extents[0], 0, extents[1]], (rng.count, number, 1)).astype(np.float64)
    boxes[..., 2 * axis], boxes[..., 2 * axis + 1] = rng.bands(extents[axis], max_fraction, number)
    return boxes


def _random_interval(rng: RandomNumbers, extent: int, min_fraction: float) -> Array:
    """Draw begin and end of an interval of an axis, [batch, 2]."""
    size = rng.uniform(min_fraction, 1) * extent
    begin = rng.uniform(0, 1) * (extent - size)
    return np.stack([begin, begin + size], axis=-1)
