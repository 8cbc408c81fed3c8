"""The augmentations of Kim, Hong, Lee 2022, Table 1.

An augmentation is a frozen dataclass with a probability `p`, decided for every sample of a batch on its own.
Its methods build DALI nodes: `draw` makes everything that is random, the others do what was drawn. An
`AudioAugmentation` acts before the mel spectrogram is computed, on the waveform or on its tempo and pitch, an
`ImageAugmentation` on the finished spectrogram.

Mixing takes its partner from the whole batch, so the partner is fetched outside the `if`: inside, DALI would
take it from the selected samples only.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.pipelines.draws import Draws, band, beta, chosen, coin, erase, like, partners, uniform

_OCTAVE = 12
"""Semitones."""
_MOST_STRETCH = 4.0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One step of a recipe; by itself it changes nothing."""

    mixes: ClassVar[bool] = False
    """Whether it adds something of another track, so that the label no longer says all."""

    p: float
    """Probability that a sample is changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"p = {self.p:g} of {type(self).__name__} must lie between 0 and 1.")

    def check(self, mel: MelConfig) -> None:
        """Raise `ConfigError` if the change does not fit the features."""

    def draw(self, mel: MelConfig) -> Draws:
        """Draw, for every sample, `on`: whether it is changed, and the parameters of the change."""
        return {"on": coin(self.p), **self.parameters(mel)}

    def parameters(self, mel: MelConfig) -> Draws:
        """Draw the parameters of the change, whether or not it happens."""
        return {}


@dataclass(frozen=True, kw_only=True)
class AudioAugmentation(Augmentation):
    """A step before the spectrogram."""

    @property
    def reach(self) -> float:
        """Length of the longest crop that it asks for, as a multiple of the plain one."""
        return 1.0

    @property
    def highest_pitch(self) -> float:
        """Largest value that `pitch` may have."""
        return 1.0

    def rate(self, drawn: Draws) -> DataNode | float:
        """Return the tempo as a multiple of the original."""
        return 1.0

    def pitch(self, drawn: Draws) -> DataNode | float:
        """Return the frequency of every partial as a multiple of the original."""
        return 1.0

    def wave(self, wave: DataNode, partner: DataNode, drawn: Draws) -> DataNode:
        """Change `wave`; `partner` is an equally long crop of another track of the batch."""
        return wave


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation(Augmentation, ABC):
    """A step after the spectrogram."""

    @abstractmethod
    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
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
        if not 1 / _MOST_STRETCH <= self.slowest <= self.fastest <= _MOST_STRETCH:
            raise ConfigError(
                f"slowest = {self.slowest:g} of TimeStretch must be at least {1 / _MOST_STRETCH:g} and not "
                f"above fastest = {self.fastest:g}, which must be at most {_MOST_STRETCH:g}."
            )

    @property
    def reach(self) -> float:
        return max(self.fastest, 1.0)

    def parameters(self, mel: MelConfig) -> Draws:
        return {"rate": uniform(self.slowest, self.fastest)}

    def rate(self, drawn: Draws) -> DataNode:
        return chosen(drawn["on"], drawn["rate"], 1.0)


@dataclass(frozen=True, kw_only=True)
class PitchShift(AudioAugmentation):
    """Moves the pitch at the same tempo, evenly on the scale of semitones."""

    p: float = 0.6
    semitones: float = 4.0
    """Largest shift, up or down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.semitones <= _OCTAVE:
            raise ConfigError(
                f"semitones = {self.semitones:g} of PitchShift must lie between 0 and {_OCTAVE}, an octave."
            )

    @property
    def highest_pitch(self) -> float:
        return float(2 ** (self.semitones / _OCTAVE))

    def parameters(self, mel: MelConfig) -> Draws:
        return {"semitones": uniform(-self.semitones, self.semitones)}

    def pitch(self, drawn: Draws) -> DataNode:
        return chosen(drawn["on"], dmath.pow(2.0, drawn["semitones"] / _OCTAVE), 1.0)


@dataclass(frozen=True, kw_only=True)
class WaveMixup(AudioAugmentation):
    """Adds another track: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = 0.6
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_alpha(self.alpha, self)

    def parameters(self, mel: MelConfig) -> Draws:
        return {"weight": beta(self.alpha)}

    def wave(self, wave: DataNode, partner: DataNode, drawn: Draws) -> DataNode:
        weight = like(wave, drawn["weight"])
        if drawn["on"]:
            wave = weight * wave + (1.0 - weight) * partner
        return wave


@dataclass(frozen=True, kw_only=True)
class Mixup(ImageAugmentation):
    """Mixes two spectrograms: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = 0.6
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_alpha(self.alpha, self)

    def parameters(self, mel: MelConfig) -> Draws:
        return {"partner": partners(), "weight": beta(self.alpha)}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        partner = fn.permute_batch(image, indices=drawn["partner"])
        weight = like(image, drawn["weight"])
        if drawn["on"]:
            image = weight * image + (1.0 - weight) * partner
        return image


@dataclass(frozen=True, kw_only=True)
class CutMix(ImageAugmentation):
    """Replaces a rectangle with the partner's [Yun 2019, CutMix].

    The rectangle has the image's proportions, an area of 1 - w with w from Beta(alpha, alpha), and its
    centre anywhere in the image; what lies outside is cut off.
    """

    mixes = True
    p: float = 0.6
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_alpha(self.alpha, self)

    def parameters(self, mel: MelConfig) -> Draws:
        """Draw partner, anchor [top, left], which may lie outside the image, and shape [height, width]."""
        extent = types.Constant(np.array([mel.n_mels, mel.frames], dtype=np.float32))
        shape = dmath.floor(dmath.sqrt(beta(self.alpha)) * extent)
        centre = dmath.floor(fn.random.uniform(range=[0.0, 1.0], shape=[2]) * extent)
        return {"partner": partners(), "anchor": centre - dmath.floor(shape / 2), "shape": shape}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        partner = fn.permute_batch(image, indices=drawn["partner"])
        anchor, shape = drawn["anchor"], drawn["shape"]
        if drawn["on"]:
            # Exact: outside the rectangle the partner cancels itself, inside both minuends are zero.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("most_mels", self.most_mels, self)
        check_part("most_frames", self.most_frames, self)

    def parameters(self, mel: MelConfig) -> Draws:
        mels, first_mel = band(mel.n_mels, self.most_mels)
        frames, first_frame = band(mel.frames, self.most_frames)
        return {
            "over_mels": coin(0.5),
            "mels": mels,
            "first_mel": first_mel,
            "frames": frames,
            "first_frame": first_frame,
        }

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        if drawn["on"]:
            if drawn["over_mels"]:
                image = erase(image, drawn["first_mel"], drawn["mels"], axes="H")
            else:
                image = erase(image, drawn["first_frame"], drawn["frames"], axes="W")
        return image


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(ImageAugmentation):
    """Turns time around."""

    p: float = 0.8

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        return fn.flip(image, horizontal=drawn["on"], vertical=0)


@dataclass(frozen=True, kw_only=True)
class VerticalFlip(ImageAugmentation):
    """Turns the mel bands upside down."""

    p: float = 0.8

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        return fn.flip(image, horizontal=0, vertical=drawn["on"])


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holes < 1 or self.size < 1:
            raise ConfigError(
                f"holes = {self.holes} and size = {self.size} of CutOut must be at least 1: leave it out "
                f"for none."
            )

    def parameters(self, mel: MelConfig) -> Draws:
        """Draw anchors [2 x holes]: top and left of each hole, which may lie outside the image."""
        extent = types.Constant(np.array([mel.n_mels, mel.frames] * self.holes, dtype=np.float32))
        centres = fn.random.uniform(range=[0.0, 1.0], shape=[2 * self.holes]) * extent
        return {"anchors": dmath.floor(centres) - self.size // 2}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        if drawn["on"]:
            image = erase(image, drawn["anchors"], [float(self.size)] * (2 * self.holes))
        return image


def check_part(name: str, value: float, step: Augmentation) -> None:
    """Raise `ConfigError` unless `value`, a parameter of `step`, is a part of a whole."""
    if not 0 < value <= 1:
        raise ConfigError(f"{name} = {value:g} of {type(step).__name__} must be above 0, at most 1.")


def _check_alpha(alpha: float, step: Augmentation) -> None:
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha = {alpha:g} of {type(step).__name__} must be a number above 0.")
