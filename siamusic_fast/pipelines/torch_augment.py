"""The augmentations of `augment` and `extras` for the torch backend, written from what their docstrings say.

All parameters of a batch are drawn with numpy, so that they do not depend on the device. A step before the
spectrogram becomes an `Effect`; a step after it changes a batch of images in place. A new augmentation is a
function here and an entry in `AUDIO` or `IMAGE`.

On the CPU images are changed one by one, each of which stays in the cache; elsewhere all at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import horizontal_flip, vertical_flip

from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augment import (
    Augmentation,
    CutMix,
    CutOut,
    HorizontalFlip,
    Mask,
    Mixup,
    PitchShift,
    TimeStretch,
    VerticalFlip,
    WaveMixup,
)
from siamusic_fast.pipelines.extras import (
    FrequencyMask,
    Gain,
    GridDistortion,
    Noise,
    RandomResizedCrop,
    Tilt,
    TimeMask,
)
from siamusic_fast.pipelines.torch_features import on_device

Array = NDArray[Any]


class Draws:
    """Random numbers, one for every sample of a batch; the same for the same `seeds`."""

    def __init__(self, seeds: Sequence[int], count: int) -> None:
        self._rng = np.random.default_rng(seeds)
        self.count = count

    def coin(self, p: float) -> Array:
        return self._rng.random(self.count) < p

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return low + (high - low) * self._rng.random((self.count, *shape))

    def beta(self, alpha: float) -> Array:
        return self._rng.beta(alpha, alpha, self.count)

    def seeds(self) -> Array:
        return self._rng.integers(2**62, size=self.count)

    def partners(self) -> Array:
        """Return the index of another sample for every sample, each as likely, each once: a random cycle."""
        order = self._rng.permutation(self.count)
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)
        return others

    def bands(self, extent: int, most: float, number: int = 1) -> tuple[Array, Array]:
        """Return begin and end of `number` bands of 1 to `most` of `extent` values, [count, number] each."""
        width = np.floor(self.uniform(1, max(1, int(most * extent)) + 1, number))
        begin = np.floor(self.uniform(0, 1, number) * (extent - width + 1))
        return begin, begin + width


class Waves(NamedTuple):
    """Some samples of a batch on their way to the spectrogram."""

    wave: Tensor
    """float32 [samples, longest], zeros behind the end of each."""
    partner: Tensor
    """Equally long crops of other tracks."""
    lengths: Tensor
    """int64 [samples, 1]."""
    rows: slice
    """Which samples of the batch these are."""


class Effect(NamedTuple):
    """What a step does to each sample of a batch before the spectrogram."""

    rate: Array | float = 1.0
    """Tempo as a multiple of the original."""
    pitch: Array | float = 1.0
    """Frequency of every partial as a multiple of the original."""
    wave: Callable[[Waves], Tensor] | None = None
    """Returns the waves changed."""


def effect(step: Augmentation, draws: Draws) -> Effect:
    """Return what `step` does to a batch before the spectrogram."""
    return AUDIO[type(step)](step, draws)


def change(images: Tensor, step: Augmentation, draws: Draws) -> None:
    """Apply `step` to normalised log-mels, float32 [batch, n_mels, frames], in place."""
    IMAGE[type(step)](step, images, draws)


def check_known(recipe: Sequence[Augmentation]) -> None:
    """Raise `ConfigError` for a step that is not implemented here."""
    known = {**AUDIO, **IMAGE}
    for step in recipe:
        if type(step) not in known:
            raise ConfigError(
                f"The torch backend has no {type(step).__name__}: leave it out, use the DALI backend, or "
                f"choose among {', '.join(kind.__name__ for kind in known)}."
            )


def _time_stretch(step: TimeStretch, draws: Draws) -> Effect:
    return Effect(rate=np.where(draws.coin(step.p), draws.uniform(step.slowest, step.fastest), 1.0))


def _pitch_shift(step: PitchShift, draws: Draws) -> Effect:
    octaves = draws.uniform(-step.semitones / 12, step.semitones / 12)
    return Effect(pitch=np.where(draws.coin(step.p), 2.0**octaves, 1.0))


def _wave_mixup(step: WaveMixup, draws: Draws) -> Effect:
    weight = np.where(draws.coin(step.p), draws.beta(step.alpha), 1.0)

    def mixed(waves: Waves) -> Tensor:
        own = _column(weight[waves.rows], waves.wave)
        return waves.wave * own + waves.partner * (1 - own)

    return Effect(wave=mixed)


def _gain(step: Gain, draws: Draws) -> Effect:
    decibels = draws.uniform(-step.decibels, step.decibels)
    factor = np.where(draws.coin(step.p), 10 ** (decibels / 20), 1.0)
    return Effect(wave=lambda waves: waves.wave * _column(factor[waves.rows], waves.wave))


def _noise(step: Noise, draws: Draws) -> Effect:
    snr = draws.uniform(step.lowest_snr, step.highest_snr)
    factor, seeds = np.where(draws.coin(step.p), 10 ** (-snr / 20), 0.0), draws.seeds()

    def noisy(waves: Waves) -> Tensor:
        generator = torch.Generator(waves.wave.device).manual_seed(int(seeds[waves.rows.start]))
        noise = torch.empty_like(waves.wave).normal_(generator=generator)
        rms = (waves.wave.square().sum(dim=-1, keepdim=True) / waves.lengths).sqrt()
        return waves.wave + noise * rms * _column(factor[waves.rows], waves.wave)

    return Effect(wave=noisy)


def _mixup(step: Mixup, images: Tensor, draws: Draws) -> None:
    partners, weight = draws.partners(), draws.beta(step.alpha)
    rows = np.flatnonzero(draws.coin(step.p))
    others = images.index_select(0, _indices(partners[rows], images))

    def mixed(chosen: Tensor, at: slice) -> Tensor:
        own = _column(weight[rows[at]], images)[..., None]
        return chosen * own + others[at] * (1 - own)

    _replace(images, rows, mixed)


def _cutmix(step: CutMix, images: Tensor, draws: Draws) -> None:
    _, n_mels, frames = images.shape
    others = images.index_select(0, _indices(draws.partners(), images))
    side = np.sqrt(draws.beta(step.alpha))
    height, width = np.floor(side * n_mels), np.floor(side * frames)
    top = np.floor(draws.uniform(0, n_mels)) - height // 2
    left = np.floor(draws.uniform(0, frames)) - width // 2
    boxes = np.stack([top, top + height, left, left + width], axis=-1)[:, None]
    _paste(images, others, boxes, draws.coin(step.p))


def _mask(step: Mask, images: Tensor, draws: Draws) -> None:
    _, n_mels, frames = images.shape
    over_mels = draws.coin(0.5)[:, None]
    begin, end = draws.bands(n_mels, step.most_mels)
    mels = np.stack([begin, end, np.zeros_like(begin), np.full_like(begin, frames)], axis=-1)
    begin, end = draws.bands(frames, step.most_frames)
    columns = np.stack([np.zeros_like(begin), np.full_like(begin, n_mels), begin, end], axis=-1)
    _paste(images, None, np.where(over_mels[..., None], mels, columns), draws.coin(step.p))


def _frequency_mask(step: FrequencyMask, images: Tensor, draws: Draws) -> None:
    begin, end = draws.bands(images.shape[1], step.most, step.count)
    boxes = np.stack([begin, end, np.zeros_like(begin), np.full_like(begin, images.shape[2])], axis=-1)
    _paste(images, None, boxes, draws.coin(step.p))


def _time_mask(step: TimeMask, images: Tensor, draws: Draws) -> None:
    begin, end = draws.bands(images.shape[2], step.most, step.count)
    boxes = np.stack([np.zeros_like(begin), np.full_like(begin, images.shape[1]), begin, end], axis=-1)
    _paste(images, None, boxes, draws.coin(step.p))


def _cutout(step: CutOut, images: Tensor, draws: Draws) -> None:
    _, n_mels, frames = images.shape
    top = np.floor(draws.uniform(0, n_mels, step.holes)) - step.size // 2
    left = np.floor(draws.uniform(0, frames, step.holes)) - step.size // 2
    boxes = np.stack([top, top + step.size, left, left + step.size], axis=-1)
    _paste(images, None, boxes, draws.coin(step.p))


def _horizontal_flip(step: HorizontalFlip, images: Tensor, draws: Draws) -> None:
    _replace(images, np.flatnonzero(draws.coin(step.p)), lambda chosen, _: horizontal_flip(chosen))


def _vertical_flip(step: VerticalFlip, images: Tensor, draws: Draws) -> None:
    _replace(images, np.flatnonzero(draws.coin(step.p)), lambda chosen, _: vertical_flip(chosen))


def _random_resized_crop(step: RandomResizedCrop, images: Tensor, draws: Draws) -> None:
    rows = np.flatnonzero(draws.coin(step.p))
    for axis, fewest in ((1, step.fewest_mels), (2, step.fewest_frames)):
        extent = images.shape[axis]
        part = draws.uniform(fewest, 1, 1)
        begin = draws.uniform(0, 1, 1) * (1 - part) * extent
        _resize(images, rows, begin + part * (np.arange(extent) + 0.5) - 0.5, axis)


def _grid_distortion(step: GridDistortion, images: Tensor, draws: Draws) -> None:
    rows = np.flatnonzero(draws.coin(step.p))
    for axis in (1, 2):
        extent = images.shape[axis]
        sizes = draws.uniform(1 - step.limit, 1 + step.limit, step.steps)
        edges = np.pad(np.cumsum(sizes, axis=1), ((0, 0), (1, 0))) * (extent / sizes.sum(axis=1)[:, None])
        places = np.array([round(extent * cell / step.steps) for cell in range(step.steps + 1)])
        pixels = np.arange(extent) + 0.5
        positions = np.stack([np.interp(pixels, places, row) for row in edges]) - 0.5
        _resize(images, rows, positions, axis)


def _tilt(step: Tilt, images: Tensor, draws: Draws) -> None:
    rise = np.where(draws.coin(step.p), draws.uniform(-step.most, step.most), 0.0)
    line = torch.linspace(-1, 1, images.shape[1], device=images.device)
    images += _column(rise, images)[..., None] * line[:, None]


AUDIO: dict[type[Augmentation], Callable[[Any, Draws], Effect]] = {
    WaveMixup: _wave_mixup,
    PitchShift: _pitch_shift,
    TimeStretch: _time_stretch,
    Gain: _gain,
    Noise: _noise,
}
"""The steps before the spectrogram."""

IMAGE: dict[type[Augmentation], Callable[[Any, Tensor, Draws], None]] = {
    CutMix: _cutmix,
    Mixup: _mixup,
    Mask: _mask,
    HorizontalFlip: _horizontal_flip,
    VerticalFlip: _vertical_flip,
    CutOut: _cutout,
    FrequencyMask: _frequency_mask,
    TimeMask: _time_mask,
    RandomResizedCrop: _random_resized_crop,
    GridDistortion: _grid_distortion,
    Tilt: _tilt,
}
"""The steps after the spectrogram."""


def _one_by_one(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _replace(images: Tensor, rows: Array, function: Callable[[Tensor, slice], Tensor]) -> None:
    """Set images[rows] to function(images[rows], places in `rows`)."""
    if _one_by_one(images):
        for at, row in enumerate(rows.tolist()):
            images[row : row + 1] = function(images[row : row + 1], slice(at, at + 1))
    elif len(rows):
        index = _indices(rows, images)
        images[index] = function(images[index], slice(None))


def _paste(images: Tensor, others: Tensor | None, boxes: Array, chosen: Array) -> None:
    """Fill `boxes` of the `chosen` images with what `others` have there, or with zeros.

    `boxes` are [batch, number, 4]: top, bottom, left, right, the second and fourth outside; they may reach
    beyond the image.
    """
    _, n_mels, frames = images.shape
    boxes = np.clip(boxes, 0, [n_mels, n_mels, frames, frames]).astype(np.int64)
    if _one_by_one(images):
        target, source = images.numpy(), None if others is None else others.numpy()
        for image in np.flatnonzero(chosen).tolist():
            for begin, end, first, last in boxes[image].tolist():
                box = (image, slice(begin, end), slice(first, last))
                target[box] = 0 if source is None else source[box]
        return
    boxes = np.where(chosen[:, None, None], boxes, 0)
    top, bottom, left, right = _indices(boxes, images)[..., None].unbind(dim=2)
    row, column = torch.arange(n_mels, device=images.device), torch.arange(frames, device=images.device)
    in_rows, in_columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    inside = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)
    images.copy_(torch.where(inside, images.new_zeros(()) if others is None else others, images))


def _resize(images: Tensor, rows: Array, positions: Array, axis: int) -> None:
    """Set images[rows] to their values at `positions` along `axis`, [batch, extent], linear in between."""
    last = images.shape[axis] - 1
    positions = positions[rows].clip(0, last)
    low = np.minimum(positions.astype(np.int64), max(last - 1, 0))
    weight = _column(positions - low, images)[..., 0]
    below, above = _indices(low, images), _indices(np.minimum(low + 1, last), images)

    def resized(chosen: Tensor, at: slice) -> Tensor:
        def along(values: Tensor) -> Tensor:
            return (values[at, :, None] if axis == 1 else values[at, None, :]).expand_as(chosen)

        own = along(weight)
        return chosen.gather(axis, along(below)) * (1 - own) + chosen.gather(axis, along(above)) * own

    _replace(images, rows, resized)


def _indices(values: Array, like: Tensor) -> Tensor:
    return on_device(values, like.device)


def _column(values: Array, like: Tensor) -> Tensor:
    """Return `values` as float32 with one more axis, on the device of `like`."""
    return on_device(values.astype(np.float32), like.device)[..., None]
