"""The operations after the spectrogram, on batches of normalized log-mels, float32 [rows, n_mels, frames]."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines import ops
from siamusic_fast.pipelines.ops import box_bits, cell_edges
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.pipelines.torch.features import on_device


def changed_images(images: Tensor, op: ops.ImageOp, rows: slice, mel: MelConfig) -> Tensor:
    """Return `images`, the `rows` of a batch, after `op`; they may be overwritten."""
    return _FUNCTIONS[type(op)](images, op, rows, mel)


def _mix(images: Tensor, op: ops.MixImages, rows: slice, mel: MelConfig) -> Tensor:
    weight = on_device(op.weight[rows].astype(np.float32)[:, None, None], images.device)
    return images.lerp(_partners(images, op.partner, rows), weight)


def _paste(images: Tensor, op: ops.Paste, rows: slice, mel: MelConfig) -> Tensor:
    inside = _inside(op.boxes[rows], mel, images.device)
    return torch.where(inside, _partners(images, op.partner, rows), images)


def _erase(images: Tensor, op: ops.Erase, rows: slice, mel: MelConfig) -> Tensor:
    return images.masked_fill_(_inside(op.boxes[rows], mel, images.device), 0.0)


def _flip(images: Tensor, op: ops.Flip, rows: slice, mel: MelConfig) -> Tensor:
    for on, axis in ((op.mels[rows], 1), (op.frames[rows], 2)):
        index = on_device(np.flatnonzero(on), images.device)
        images[index] = images[index].flip(axis)
    return images


def _warp(images: Tensor, op: ops.Warp, rows: slice, mel: MelConfig) -> Tensor:
    on = op.on[rows]
    index = on_device(np.flatnonzero(on), images.device)
    for axis, edges in ((1, op.mels[rows]), (2, op.frames[rows])):
        images[index] = _resampled(images[index], edges[on], axis)
    return images


def _function(images: Tensor, op: ops.ImageFunction, rows: slice, mel: MelConfig) -> Tensor:
    values = {name: on_device(value[rows], images.device) for name, value in op.values.items()}
    result: Tensor = op.torch(images[..., None], values)
    return result[..., 0]


_FUNCTIONS: dict[type[ops.ImageOp], Callable[[Tensor, Any, slice, MelConfig], Tensor]] = {
    ops.MixImages: _mix,
    ops.Paste: _paste,
    ops.Erase: _erase,
    ops.Flip: _flip,
    ops.Warp: _warp,
    ops.ImageFunction: _function,
}


def _partners(images: Tensor, partner: Array, rows: slice) -> Tensor:
    return images.index_select(0, on_device(partner[rows] - rows.start, images.device))


def _inside(boxes: Array, mel: MelConfig, device: torch.device) -> Tensor:
    """Return which pixels lie in one of the boxes of their image, bool [rows, n_mels, frames]."""
    bits = box_bits(boxes, mel)
    if bits[0].dtype != np.uint8:  # torch does little with the wider unsigned integers
        bits = bits[0].astype(np.int64), bits[1].astype(np.int64)
    of_mels, of_frames = (on_device(part, device) for part in bits)
    return (of_mels[:, :, None] & of_frames[:, None, :]) != 0


def _resampled(images: Tensor, edges: Array, axis: int) -> Tensor:
    """Return the values at equal cells between `edges`, [rows, edges], along `axis`; linear in between."""
    extent = images.shape[axis]
    cells, pixels = cell_edges(extent, edges.shape[1] - 1), np.arange(extent) + 0.5
    positions = np.stack([np.interp(pixels, cells, row) for row in edges]) if len(edges) else edges[:, :0]
    positions = (positions - 0.5).clip(0, extent - 1)
    low = np.minimum(positions.astype(np.int64), max(extent - 2, 0))

    def along(values: Array) -> Tensor:
        found = on_device(values, images.device)
        return (found[:, :, None] if axis == 1 else found[:, None, :]).expand_as(images)

    below = images.gather(axis, along(low))
    above = images.gather(axis, along(np.minimum(low + 1, extent - 1)))
    return below.lerp(above, along((positions - low).astype(np.float32)))
