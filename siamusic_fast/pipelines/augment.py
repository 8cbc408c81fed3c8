"""The augmentations of Kim, Hong, Lee 2022, Table 1.

An augmentation is a frozen dataclass with a probability `p`, decided for every sample of a batch on its own.
Its methods build DALI nodes. An `AudioAugmentation` acts before the mel spectrogram is computed, on the
waveform or on its tempo and pitch, an `ImageAugmentation` on the finished spectrogram.

Mixing takes its partner from the whole batch, so the partner is drawn outside the `if`: inside, DALI would
draw from the selected samples only.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.pipelines.draws import (
    band,
    beta,
    chosen,
    coin,
    coin_number,
    erase,
    partner_of,
    uniform,
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One step of a recipe; by itself it changes nothing."""

    p: float
    """Probability that a sample is changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"p = {self.p:g} of {type(self).__name__} must lie between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class AudioAugmentation(Augmentation):
    """A step before the spectrogram."""

    @property
    def reach(self) -> float:
        """Length of the longest crop that it asks for, as a multiple of the plain one."""
        return 1.0

    def rate(self) -> DataNode | float:
        """Return the tempo as a multiple of the original."""
        return 1.0

    def pitch(self) -> DataNode | float:
        """Return the frequency of every partial as a multiple of the original."""
        return 1.0

    def wave(self, wave: DataNode, partner: DataNode) -> DataNode:
        """Change `wave`; `partner` is an equally long crop of another track of the batch."""
        return wave


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation(Augmentation, ABC):
    """A step after the spectrogram."""

    @abstractmethod
    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        """Change `image`: normalised log-mels, float32 [n_mels, frames, 1], where 0 is the mean."""


@dataclass(frozen=True, kw_only=True)
class TimeStretch(AudioAugmentation):
    """Plays faster or slower at the same pitch."""

    p: float = 0.6
    slowest: float = 0.6
    """Lowest rate; below 1 is slower."""
    fastest: float = 1.5
    """Highest rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.slowest <= self.fastest:
            raise ConfigError(
                f"slowest = {self.slowest:g} of TimeStretch must be above 0 and not above "
                f"fastest = {self.fastest:g}."
            )

    @property
    def reach(self) -> float:
        return max(self.fastest, 1.0)

    def rate(self) -> DataNode:
        return chosen(coin(self.p), uniform(self.slowest, self.fastest), 1.0)


@dataclass(frozen=True, kw_only=True)
class PitchShift(AudioAugmentation):
    """Moves the pitch at the same tempo, evenly on the scale of semitones."""

    p: float = 0.6
    semitones: float = 4.0
    """Largest shift, up or down."""

    def pitch(self) -> DataNode:
        octaves = uniform(-self.semitones / 12, self.semitones / 12)
        return chosen(coin(self.p), dmath.pow(2.0, octaves), 1.0)


@dataclass(frozen=True, kw_only=True)
class WaveMixup(AudioAugmentation):
    """Adds another track: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    p: float = 0.6
    alpha: float = 1.0

    def wave(self, wave: DataNode, partner: DataNode) -> DataNode:
        weight = beta(self.alpha, wave)
        if coin(self.p):
            wave = weight * wave + (1.0 - weight) * partner
        return wave


@dataclass(frozen=True, kw_only=True)
class Mixup(ImageAugmentation):
    """Mixes two spectrograms: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    p: float = 0.6
    alpha: float = 1.0

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        partner = partner_of(image)
        weight = beta(self.alpha, image)
        if coin(self.p):
            image = weight * image + (1.0 - weight) * partner
        return image


@dataclass(frozen=True, kw_only=True)
class CutMix(ImageAugmentation):
    """Replaces a rectangle with the partner's [Yun 2019, CutMix].

    The rectangle has the image's proportions, an area of 1 - w with w from Beta(alpha, alpha), and its
    centre anywhere in the image; what lies outside is cut off.
    """

    p: float = 0.6
    alpha: float = 1.0

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        partner = partner_of(image)
        side = dmath.sqrt(fn.random.beta(alpha=self.alpha, beta=self.alpha))
        height, width = dmath.floor(side * mel.n_mels), dmath.floor(side * mel.frames)
        top = dmath.floor(uniform(0, mel.n_mels)) - dmath.floor(height / 2)
        left = dmath.floor(uniform(0, mel.frames)) - dmath.floor(width / 2)
        if coin(self.p):
            # Exact: outside the rectangle the partner cancels itself, inside both minuends are zero.
            anchor, shape = fn.stack(top, left), fn.stack(height, width)
            image = erase(image, anchor, shape) + (partner - erase(partner, anchor, shape))
        return image


@dataclass(frozen=True, kw_only=True)
class Mask(ImageAugmentation):
    """Sets a band of mels or, as often, a band of frames to the mean.

    Widths are uniform from 1 up to a fraction of the image: for mels that of SpecAugment's LibriSpeech
    policy (27 of 80) [Park 2019], for frames its 100 frames on the 431 of a crop.
    """

    p: float = 0.4
    most_mels: float = 27 / 80
    most_frames: float = 100 / 431

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        mels, first_mel = band(mel.n_mels, self.most_mels)
        frames, first_frame = band(mel.frames, self.most_frames)
        over_mels = coin(0.5)
        if coin(self.p):
            if over_mels:
                image = fn.erase(image, anchor=first_mel, shape=mels, axis_names="H", fill_value=0.0)
            else:
                image = fn.erase(image, anchor=first_frame, shape=frames, axis_names="W", fill_value=0.0)
        return image


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(ImageAugmentation):
    """Turns time around."""

    p: float = 0.8

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        return fn.flip(image, horizontal=coin_number(self.p), vertical=0)


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(ImageAugmentation):
    """Turns the mel bands upside down."""

    p: float = 0.8

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        return fn.flip(image, horizontal=0, vertical=coin_number(self.p))


@dataclass(frozen=True, kw_only=True)
class CutOut(ImageAugmentation):
    """Sets square holes to the mean [DeVries 2017].

    A hole's centre lies anywhere in the image and what lies outside is cut off, as there. Several small
    holes instead of one large one suit an image nine times as wide as it is high.
    """

    p: float = 0.8
    holes: int = 4
    size: int = 16
    """Side of a hole, in mels and frames."""

    def image(self, image: DataNode, mel: MelConfig) -> DataNode:
        extent = types.Constant(np.array([mel.n_mels, mel.frames] * self.holes, dtype=np.float32))
        centres = fn.random.uniform(range=[0.0, 1.0], shape=[2 * self.holes]) * extent
        anchors = dmath.floor(centres) - self.size // 2
        if coin(self.p):
            image = erase(image, anchors, [float(self.size)] * (2 * self.holes))
        return image
