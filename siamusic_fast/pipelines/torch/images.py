"""The changes after the spectrogram, on batches of normalized log-mels, float32 [rows, n_mels, frames]."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.pipelines.changes import (
    Erase,
    Flip,
    ImageChange,
    ImageFunction,
    MixImages,
    Paste,
    Warp,
    box_bits,
    cell_edges,
)
from siamusic_fast.pipelines.draws import Array
from siamusic_fast.pipelines.torch.features import on_device


def changed(images: Tensor, change: ImageChange, rows: slice) -> Tensor:
    """Return `images`, the `rows` of a batch, with what `change` asks of them; they may be overwritten."""
    return _KINDS[type(change)](images, change, rows)


def _mix(images: Tensor, change: MixImages, rows: slice) -> Tensor:
    return images.lerp(_partners(images, change.partner, rows), _weights(change.weight, rows, images))


def _paste(images: Tensor, change: Paste, rows: slice) -> Tensor:
    return torch.where(_inside(images, change.boxes, rows), _partners(images, change.partner, rows), images)


def _erase(images: Tensor, change: Erase, rows: slice) -> Tensor:
    return images.masked_fill_(_inside(images, change.boxes, rows), 0.0)


def _flip(images: Tensor, change: Flip, rows: slice) -> Tensor:
    for on, axis in ((change.mels[rows], 1), (change.frames[rows], 2)):
        index = on_device(np.flatnonzero(on), images.device)
        images[index] = images[index].flip(axis)
    return images


def _warp(images: Tensor, change: Warp, rows: slice) -> Tensor:
    index = on_device(np.flatnonzero(change.on[rows]), images.device)
    for axis, edges in ((1, change.mels[rows]), (2, change.frames[rows])):
        images[index] = _resampled(images[index], edges[change.on[rows]], axis)
    return images


def _function(images: Tensor, change: ImageFunction, rows: slice) -> Tensor:
    values = {name: on_device(value[rows], images.device) for name, value in change.values.items()}
    result: Tensor = change.torch(images[..., None], values)
    return result[..., 0]


_KINDS: dict[type[ImageChange], Callable[[Tensor, Any, slice], Tensor]] = {
    MixImages: _mix,
    Paste: _paste,
    Erase: _erase,
    Flip: _flip,
    Warp: _warp,
    ImageFunction: _function,
}


def _partners(images: Tensor, partner: Array, rows: slice) -> Tensor:
    return images.index_select(0, on_device(partner[rows] - rows.start, images.device))


def _weights(values: Array, rows: slice, like: Tensor) -> Tensor:
    """Return the `rows` of `values` as float32 [rows, 1, 1], on the device of `like`."""
    return on_device(values[rows].astype(np.float32)[:, None, None], like.device)


def _inside(images: Tensor, boxes: Array, rows: slice) -> Tensor:
    """Return which pixels lie in one of the boxes of their image, bool [rows, n_mels, frames]."""
    bits = box_bits(boxes[rows], *images.shape[1:])
    if bits[0].dtype != np.uint8:  # torch does little with the wider unsigned integers
        bits = bits[0].astype(np.int64), bits[1].astype(np.int64)
    of_rows, of_columns = (on_device(part, images.device) for part in bits)
    return (of_rows[:, :, None] & of_columns[:, None, :]) != 0


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
