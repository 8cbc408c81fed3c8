"""The operations that engines apply to waves and images, each with the numbers that were drawn for it.

Operations are deterministic, and both engines know all of them. Arrays have a row for every sample of the
batch. A sample that an augmentation does not change has neutral numbers: weight 0, factor 1, an empty box.
`WaveFunction` and `ImageFunction` apply a function of one's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.random_numbers import Array

Function = Callable[[Any, Mapping[str, Any]], Any]

MAX_BOXES = 64
"""Largest number of boxes of one operation: the bits of the widest integer, see `box_bits`."""
FULL_SCALE = 32_768
"""Waves are floats in units of 16 bits. Shifting the decibels saves a division of every sample."""
PITCH_GRID = 128
"""Pitches are multiples of 1 / 128, about 13 cents apart: resampling needs ratios of small integers."""


class WaveOp:
    """An operation before the spectrogram."""


@dataclass(frozen=True, kw_only=True)
class Speed(WaveOp):
    """Plays at another tempo and pitch."""

    rate: Array | float = 1.0
    """Tempo as a multiple of the original, [batch]."""
    grid_pitch: Array | int = PITCH_GRID
    """Frequency of every partial as a multiple of the original, in units of 1 / `PITCH_GRID`, int [batch]."""


@dataclass(frozen=True, kw_only=True)
class MixWaves(WaveOp):
    """Adds the wave of another track: wave + weight (partner - wave)."""

    partner: Array
    """Row of a sample of the same block, int64 [batch]. Its own row where nothing is mixed."""
    weight: Array
    """Weight of the partner, 0 to 1, [batch]."""
    starts: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """First sample of the partner's crop, int64 [batch]. Empty until the plan sets it."""


@dataclass(frozen=True, kw_only=True)
class AddNoise(WaveOp):
    """Adds white Gaussian noise whose root mean square is `factor` times that of the wave."""

    factor: Array
    """Factor of the noise, [batch]."""
    offset: Array
    """First value to read from the table of noise, int64 [batch], below `noise.LENGTH`."""


@dataclass(frozen=True, kw_only=True)
class WaveFunction(WaveOp):
    """Applies a function of one's own to the waves, whose full scale is 32,768.

    The function maps (wave, values) to a wave. For plain arithmetic, one function serves both engines.
    """

    values: Mapping[str, Array]
    """Numbers that were drawn, by name, [batch, ...]. A factor for each wave is float32 [batch, 1]."""
    dali: Function
    """The function for DALI: `wave` is a node, float32 [samples]."""
    torch: Function
    """The function for torch: `wave` is a tensor, float32 [batch, samples], zero behind shorter waves."""


class ImageOp:
    """An operation on normalized log-mels, where 0 is the mean."""


@dataclass(frozen=True, kw_only=True)
class MixImages(ImageOp):
    """Mixes with the image of another track: image + weight (partner - image)."""

    partner: Array
    """Row of a sample of the same block, int64 [batch]."""
    weight: Array
    """Weight of the partner, 0 to 1, [batch]."""


@dataclass(frozen=True, kw_only=True)
class Paste(ImageOp):
    """Replaces boxes with the same boxes of the image of another track."""

    partner: Array
    """Row of a sample of the same block, int64 [batch]."""
    boxes: Array
    """Top, bottom, left, right, [batch, boxes, 4], without bottom and right. Boxes may leave the image."""


@dataclass(frozen=True, kw_only=True)
class Erase(ImageOp):
    """Sets boxes to the mean."""

    boxes: Array
    """Top, bottom, left, right, [batch, boxes, 4], without bottom and right. Boxes may leave the image."""


@dataclass(frozen=True, kw_only=True)
class Flip(ImageOp):
    """Reverses axes of images."""

    mels: Array
    """Whether the order of the mels is reversed, bool [batch]."""
    frames: Array
    """Whether the order of the frames is reversed, bool [batch]."""


@dataclass(frozen=True, kw_only=True)
class Warp(ImageOp):
    """Stretches and squeezes images along each axis alone, with linear interpolation.

    Along an axis, the result has `edges` - 1 equal cells. Each shows the original between two edges.
    """

    on: Array
    """Whether an image is warped, bool [batch]."""
    mels: Array
    """Edges in the original, float [batch, edges], from 0 to n_mels."""
    frames: Array
    """Edges in the original, float [batch, edges], from 0 to frames."""


@dataclass(frozen=True, kw_only=True)
class ImageFunction(ImageOp):
    """Applies a function of one's own to the images.

    The function maps (image, values) to an image. For plain arithmetic, one function serves both engines.
    """

    values: Mapping[str, Array]
    """Numbers that were drawn, by name, [batch, ...]. One for each mel is float32 [batch, n_mels, 1, 1]."""
    dali: Function
    """The function for DALI: `image` is a node, float32 [n_mels, frames, 1]."""
    torch: Function
    """The function for torch: `image` is a tensor, float32 [batch, n_mels, frames, 1]."""


def cell_edges(extent: int, cells: int) -> Array:
    """Return where cells of a warped axis begin and end in the result: as equal as whole pixels can be."""
    return np.array([round(extent * cell / cells) for cell in range(cells + 1)])


def merged(ops: Sequence[ImageOp], mel: MelConfig) -> tuple[ImageOp, ...]:
    """Return fewer operations that do the same: neighboring flips become one, and so do erasures.

    To erase after a flip is to erase the mirrored boxes before it, so erasures move in front of flips.
    """
    found: list[ImageOp] = []
    for op in ops:
        last = found[-1] if found else None
        if isinstance(op, Flip) and isinstance(last, Flip):
            found[-1] = Flip(mels=last.mels ^ op.mels, frames=last.frames ^ op.frames)
        elif isinstance(op, Erase) and isinstance(last, Flip):
            before = Erase(boxes=_mirrored(op.boxes, last, mel))
            found = [*merged([*found[:-1], before], mel), last]
        elif (
            isinstance(op, Erase)
            and isinstance(last, Erase)
            and last.boxes.shape[1] + op.boxes.shape[1] <= MAX_BOXES
        ):
            found[-1] = Erase(boxes=np.concatenate([last.boxes, op.boxes], axis=1))
        else:
            found.append(op)
    return tuple(found)


def _mirrored(boxes: Array, flip: Flip, mel: MelConfig) -> Array:
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)
    mels, frames = (
        np.where(on[:, None], (extent - end, extent - begin), (begin, end))
        for on, extent, begin, end in (
            (flip.mels, mel.n_mels, top, bottom),
            (flip.frames, mel.frames, left, right),
        )
    )
    return np.stack([*mels, *frames], axis=-1)


def box_bits(boxes: Array, mel: MelConfig) -> tuple[Array, Array]:
    """Return as bits which boxes each mel and each frame lies in: [batch, n_mels] and [batch, frames].

    A pixel lies in a box exactly if its mel and its frame have a bit in common. So an engine makes a mask
    from two short arrays, by one broadcast `&`.
    """
    number = boxes.shape[1]
    kind: Any = next(
        kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if number <= np.iinfo(kind).bits
    )
    bits = kind(1) << np.arange(number, dtype=kind)
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)[..., None]

    def crossed(begin: Array, end: Array, extent: int) -> Array:
        inside = (begin <= np.arange(extent)) & (np.arange(extent) < end)
        return np.asarray(np.bitwise_or.reduce(inside * bits[:, None], axis=1))

    return crossed(top, bottom, mel.n_mels), crossed(left, right, mel.frames)
