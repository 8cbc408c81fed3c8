"""Augmentations beyond the paper, off by default. Adding one is as short as these are."""

import itertools
from dataclasses import dataclass

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augment import AudioAugmentation, ImageAugmentation, check_part
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.pipelines.draws import Draws, band, erase, like, uniform

_MOST_DECIBELS = 100.0
_MOST_DEVIATIONS = 10.0


@dataclass(frozen=True, kw_only=True)
class Gain(AudioAugmentation):
    """Makes the waveform louder or softer, evenly on the scale of decibels."""

    p: float = 0.5
    decibels: float = 6.0
    """Largest change, up or down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decibels <= _MOST_DECIBELS:
            raise ConfigError(
                f"decibels = {self.decibels:g} of Gain must lie between 0 and {_MOST_DECIBELS:g}."
            )

    def parameters(self, mel: MelConfig) -> Draws:
        return {"decibels": uniform(-self.decibels, self.decibels)}

    def wave(self, wave: DataNode, partner: DataNode, drawn: Draws) -> DataNode:
        factor = like(wave, dmath.pow(10.0, drawn["decibels"] / 20.0))
        if drawn["on"]:
            wave = wave * factor
        return wave


@dataclass(frozen=True, kw_only=True)
class Noise(AudioAugmentation):
    """Adds white Gaussian noise at a signal-to-noise ratio that is drawn evenly in decibels."""

    p: float = 0.5
    lowest_snr: float = 10.0
    """In dB."""
    highest_snr: float = 40.0
    """In dB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -_MOST_DECIBELS <= self.lowest_snr <= self.highest_snr <= _MOST_DECIBELS:
            raise ConfigError(
                f"lowest_snr = {self.lowest_snr:g} of Noise must not be above "
                f"highest_snr = {self.highest_snr:g}, and both at most {_MOST_DECIBELS:g} either way."
            )

    def parameters(self, mel: MelConfig) -> Draws:
        return {"snr": uniform(self.lowest_snr, self.highest_snr)}

    def wave(self, wave: DataNode, partner: DataNode, drawn: Draws) -> DataNode:
        factor = like(wave, dmath.pow(10.0, drawn["snr"] / -20.0))
        if drawn["on"]:
            wave = wave + fn.random.normal(wave) * fn.reductions.rms(wave) * factor
        return wave


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not 0 <= self.limit < 1:
            raise ConfigError(
                f"steps = {self.steps} of GridDistortion must be at least 1 and limit = {self.limit:g} "
                f"between 0 and 1."
            )

    def check(self, mel: MelConfig) -> None:
        if self.steps > min(mel.n_mels, mel.frames):
            raise ConfigError(
                f"steps = {self.steps} of GridDistortion are more than the image has pixels: "
                f"{mel.n_mels} x {mel.frames}."
            )

    def parameters(self, mel: MelConfig) -> Draws:
        """Draw the sizes of the cells of the original, rows [steps] and columns [steps]."""
        return {"rows": self._drawn(mel.n_mels), "columns": self._drawn(mel.frames)}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        if drawn["on"]:
            image = _cells(image, drawn["rows"], self._sizes(mel.n_mels), axis=0)
            image = _cells(image, drawn["columns"], self._sizes(mel.frames), axis=1)
        return image

    def _sizes(self, extent: int) -> list[int]:
        """Return the sizes of the cells of the result, as equal as whole pixels can be."""
        edges = [round(extent * step / self.steps) for step in range(self.steps + 1)]
        return [end - start for start, end in itertools.pairwise(edges)]

    def _drawn(self, extent: int) -> DataNode:
        sizes = types.Constant(np.array(self._sizes(extent), dtype=np.float32))
        change = fn.random.uniform(range=[-1.0, 1.0], shape=[self.steps]) * self.limit
        drawn = sizes * (1.0 + change)
        return drawn * (extent / fn.reductions.sum(drawn))


@dataclass(frozen=True, kw_only=True)
class Tilt(ImageAugmentation):
    """Tilts the spectrum: adds a straight line over the mels, as another room or another master would.

    In decibels, it turns about the middle band: what the lowest gains, the highest loses.
    """

    p: float = 0.5
    most: float = 0.5
    """Largest change of the outermost mels, in deviations of the features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.most <= _MOST_DEVIATIONS:
            raise ConfigError(
                f"most = {self.most:g} of Tilt must lie between 0 and {_MOST_DEVIATIONS:g} deviations."
            )

    def parameters(self, mel: MelConfig) -> Draws:
        return {"rise": uniform(-self.most, self.most)}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        line = np.linspace(-1, 1, mel.n_mels, dtype=np.float32)[:, None, None]
        change = like(image, drawn["rise"] * types.Constant(line))
        if drawn["on"]:
            image = image + change
        return image


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(ImageAugmentation):
    """Enlarges a part of the image to the whole, as BYOL-A does [Niizumi 2021].

    How much is drawn for mels and for frames by themselves.
    """

    p: float = 0.5
    fewest_mels: float = 0.6
    """Smallest part, of 1."""
    fewest_frames: float = 0.6
    """Smallest part, of 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("fewest_mels", self.fewest_mels, self)
        check_part("fewest_frames", self.fewest_frames, self)

    def parameters(self, mel: MelConfig) -> Draws:
        height, width = uniform(self.fewest_mels, 1) * mel.n_mels, uniform(self.fewest_frames, 1) * mel.frames
        top, left = uniform(0, 1) * (mel.n_mels - height), uniform(0, 1) * (mel.frames - width)
        return {"top": top, "height": height, "left": left, "width": width}

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        top, left = drawn["top"], drawn["left"]
        if drawn["on"]:
            image = _resized(image, top, top + drawn["height"], extent=mel.n_mels, axis=0)
            image = _resized(image, left, left + drawn["width"], extent=mel.frames, axis=1)
        return image


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(ImageAugmentation):
    """Sets bands of mels to the mean, two of up to 27 in 80: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = 0.5
    count: int = 2
    most: float = 27 / 80

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bands(self)

    def parameters(self, mel: MelConfig) -> Draws:
        return _bands(self.count, mel.n_mels, self.most)

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        if drawn["on"]:
            image = erase(image, drawn["starts"], drawn["widths"], axes="H")
        return image


@dataclass(frozen=True, kw_only=True)
class TimeMask(ImageAugmentation):
    """Sets bands of frames to the mean, two of up to 100: SpecAugment's LibriSpeech double [Park 2019]."""

    p: float = 0.5
    count: int = 2
    most: float = 100 / 431

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bands(self)

    def parameters(self, mel: MelConfig) -> Draws:
        return _bands(self.count, mel.frames, self.most)

    def image(self, image: DataNode, drawn: Draws, mel: MelConfig) -> DataNode:
        if drawn["on"]:
            image = erase(image, drawn["starts"], drawn["widths"], axes="W")
        return image


def _cells(image: DataNode, drawn: DataNode, sizes: list[int], *, axis: int) -> DataNode:
    """Return `image` with consecutive cells of `drawn` pixels along `axis` fitted to `sizes` pixels."""
    cells, start = [], 0.0
    for cell in range(len(sizes)):
        end = start + drawn[cell]
        cells.append(_resized(image, start, end, extent=sizes[cell], axis=axis))
        start = end
    return fn.cat(*cells, axis=axis)


def _resized(
    image: DataNode, start: DataNode | float, end: DataNode | float, *, extent: int, axis: int
) -> DataNode:
    """Return what lies between `start` and `end` along `axis`, 0 or 1, with `extent` pixels there."""
    along = {"roi_start": [start], "roi_end": [end], "size": [float(extent)]}
    whole = fn.cast(image.shape()[1 - axis], dtype=types.FLOAT)
    across = {"roi_start": [0.0 * whole], "roi_end": [whole], "size": [whole]}
    box = {
        name: fn.stack(*(along[name] + across[name] if axis == 0 else across[name] + along[name]))
        for name in along
    }
    return fn.resize(image, interp_type=types.INTERP_LINEAR, antialias=False, **box)


def _bands(count: int, extent: int, most: float) -> Draws:
    """Draw starts [count] and widths [count] of bands that lie within `extent`."""
    bands = [band(extent, most) for _ in range(count)]
    return {"starts": fn.stack(*(start for _, start in bands)), "widths": fn.stack(*(w for w, _ in bands))}


def _check_bands(step: FrequencyMask | TimeMask) -> None:
    check_part("most", step.most, step)
    if step.count < 1:
        raise ConfigError(f"count = {step.count} of {type(step).__name__} must be at least 1.")
