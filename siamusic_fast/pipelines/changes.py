"""What augmentations ask of the engines: a handful of deterministic changes, each with the numbers it takes.

A sample that an augmentation does not touch has neutral numbers: weight 0, factor 1, an empty box. Arrays
have a row for every sample of the batch. Both engines know every kind; `WaveFunction` and `ImageFunction`
take what none of them can say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siamusic_fast.pipelines.draws import Array

Function = Callable[[Any, Mapping[str, Any]], Any]

MAX_BOXES = 64
"""Of one change: as many as the bits of the widest integer, see `box_bits`."""
FULL_SCALE = 32_768
"""Waves are float in units of 16 bits: the decibels are shifted instead of dividing every sample."""
PITCH_GRID = 128
"""Pitches are multiples of 1 / 128, about 13 cents apart: resampling wants ratios of small integers."""


class WaveChange:
    """Something that is done before the spectrogram."""


@dataclass(frozen=True, kw_only=True)
class Speed(WaveChange):
    """Plays at another tempo and pitch."""

    rate: Array | float = 1.0
    """Tempo as a multiple of the original, [batch]."""
    grid_pitch: Array | int = PITCH_GRID
    """Frequency of every partial as a multiple of the original, in units of 1 / `PITCH_GRID`, int [batch]."""


@dataclass(frozen=True, kw_only=True)
class MixWaves(WaveChange):
    """Moves towards the wave of another track: wave + weight (partner - wave)."""

    partner: Array
    """Index in the batch, of a sample of the same block, int64 [batch]; its own where nothing is mixed."""
    weight: Array
    """[batch], 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class AddNoise(WaveChange):
    """Adds white Gaussian noise whose root mean square is `factor` times that of the wave."""

    factor: Array
    """[batch]."""
    offset: Array
    """Where in the table of noise each sample begins to read, int64 [batch], below `noise.LENGTH`."""


@dataclass(frozen=True, kw_only=True)
class WaveFunction(WaveChange):
    """Something else, as a function for each engine, or one for both if they understand the same words.

    They map (wave, values) to a wave: `dali` a node, float32 [samples], and `torch` a tensor, float32
    [batch, samples] with zeros behind the end of a shorter wave. Waves are in units of 16 bits: full scale is
    32,768.
    """

    values: Mapping[str, Array]
    """Numbers that were drawn, by name, [batch, ...]: what multiplies a wave is float32 [batch, 1]."""
    dali: Function
    torch: Function


class ImageChange:
    """Something that is done to normalized log-mels, where 0 is the mean."""


@dataclass(frozen=True, kw_only=True)
class MixImages(ImageChange):
    """Moves towards the image of another track: image + weight (partner - image)."""

    partner: Array
    """Index in the batch, of a sample of the same block, int64 [batch]."""
    weight: Array
    """[batch], 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Paste(ImageChange):
    """Replaces what lies in boxes with what the image of another track has there."""

    partner: Array
    """Index in the batch, of a sample of the same block, int64 [batch]."""
    boxes: Array
    """Top, bottom, left, right, [batch, boxes, 4]; bottom and right are outside. Boxes may reach beyond."""


@dataclass(frozen=True, kw_only=True)
class Erase(ImageChange):
    """Sets what lies in boxes to the mean."""

    boxes: Array
    """As those of `Paste`."""


@dataclass(frozen=True, kw_only=True)
class Flip(ImageChange):
    """Turns images around."""

    mels: Array
    """Whether low and high change places, bool [batch]."""
    frames: Array
    """Whether early and late change places, bool [batch]."""


@dataclass(frozen=True, kw_only=True)
class Warp(ImageChange):
    """Stretches and squeezes images, along each axis by itself, linear between two values.

    Equal cells of the result, `edges` - 1 along an axis, show the cells of the original between the edges.
    """

    on: Array
    """Whether anything is done, bool [batch]: it is dear."""
    mels: Array
    """Edges in the original, float [batch, edges], from 0 to n_mels."""
    frames: Array
    """Edges in the original, float [batch, edges], from 0 to frames."""


@dataclass(frozen=True, kw_only=True)
class ImageFunction(ImageChange):
    """Something else, as a function for each engine, or one for both if they understand the same words.

    They map (image, values) to an image: `dali` a node, float32 [n_mels, frames, 1], and `torch` a tensor,
    float32 [batch, n_mels, frames, 1].
    """

    values: Mapping[str, Array]
    """Numbers that were drawn, by name, [batch, ...]: one for each mel is float32 [batch, n_mels, 1, 1]."""
    dali: Function
    torch: Function


def cell_edges(extent: int, cells: int) -> Array:
    """Return where cells of a warped axis begin and end in the result: as equal as whole pixels can be."""
    return np.array([round(extent * cell / cells) for cell in range(cells + 1)])


def merged(changes: list[ImageChange], n_mels: int, frames: int) -> tuple[ImageChange, ...]:
    """Return fewer changes that do the same: neighboring flips are one, and so are neighboring erasures.

    To erase after a flip is to erase the mirrored boxes before it, so erasures move in front of flips.
    """
    found: list[ImageChange] = []
    for change in changes:
        last = found[-1] if found else None
        if isinstance(change, Flip) and isinstance(last, Flip):
            found[-1] = Flip(mels=last.mels ^ change.mels, frames=last.frames ^ change.frames)
        elif isinstance(change, Erase) and isinstance(last, Flip):
            found.pop()
            before = Erase(boxes=_mirrored(change.boxes, last, n_mels, frames))
            found = [*merged([*found, before], n_mels, frames), last]
        elif isinstance(change, Erase) and isinstance(last, Erase) and _fit(last, change):
            found[-1] = Erase(boxes=np.concatenate([last.boxes, change.boxes], axis=1))
        else:
            found.append(change)
    return tuple(found)


def _fit(one: Erase, other: Erase) -> bool:
    return bool(one.boxes.shape[1] + other.boxes.shape[1] <= MAX_BOXES)


def _mirrored(boxes: Array, flip: Flip, n_mels: int, frames: int) -> Array:
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)
    mels, columns = flip.mels[:, None], flip.frames[:, None]
    return np.stack(
        [
            np.where(mels, n_mels - bottom, top),
            np.where(mels, n_mels - top, bottom),
            np.where(columns, frames - right, left),
            np.where(columns, frames - left, right),
        ],
        axis=-1,
    )


def box_bits(boxes: Array, n_mels: int, frames: int) -> tuple[Array, Array]:
    """Return which boxes each row and each column crosses, as bits: [batch, n_mels] and [batch, frames].

    A pixel lies in a box exactly if its row and its column have a bit in common, so two short vectors say
    what a mask would: an engine makes the mask by one broadcast `&`.
    """
    number = boxes.shape[1]
    kind: Any = next(
        kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if number <= np.iinfo(kind).bits
    )
    bits = kind(1) << np.arange(number, dtype=kind)
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)[..., None]
    row, column = np.arange(n_mels), np.arange(frames)

    def crossed(begin: Array, end: Array, places: Array) -> Array:
        inside = (places >= begin) & (places < end)
        return np.asarray(np.bitwise_or.reduce(inside * bits[:, None], axis=1))

    return crossed(top, bottom, row), crossed(left, right, column)
