"""The operations after the spectrogram, as DALI nodes on normalized log-mels, [n_mels, frames, 1]."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from nvidia.dali import fn, types

from siamusic_fast.pipelines import ops
from siamusic_fast.pipelines.dali.inputs import DataNode, Inputs
from siamusic_fast.pipelines.ops import box_bits, cell_edges
from siamusic_fast.pipelines.plan import Plan, TrackPlan
from siamusic_fast.pipelines.random_numbers import Array

ImageNodes = Mapping[type[ops.ImageOp], Callable[[DataNode, Any, Inputs], DataNode]]
"""For each kind of operation, the function that returns the changed image."""


def _mix(image: DataNode, op: ops.MixImages, inputs: Inputs) -> DataNode:
    partner = fn.permute_batch(image, indices=inputs.attribute("partner", np.int32))
    return image + inputs.on_device(inputs.attribute("weight", np.float32)) * (partner - image)


def _mix_some(image: DataNode, op: ops.MixImages, inputs: Inputs) -> DataNode:
    """Spare the images that are not mixed the arithmetic."""
    partner = fn.permute_batch(image, indices=inputs.attribute("partner", np.int32))
    if inputs.attribute("weight", bool):
        image = image + inputs.on_device(inputs.attribute("weight", np.float32)) * (partner - image)
    return image


def _inside(inputs: Inputs) -> DataNode:
    """Return whether each pixel lies in a box: not 0 if it does."""
    mels, frames = inputs.several(_bits, 2)
    return inputs.on_device(mels) & inputs.on_device(frames)


def _bits(op: ops.Paste | ops.Erase, plan: Plan | TrackPlan) -> tuple[Array, Array]:
    mels, frames = box_bits(op.boxes, plan.frontend.mel)
    return mels[:, :, None, None], frames[:, None, :, None]


def _paste(image: DataNode, op: ops.Paste, inputs: Inputs) -> DataNode:
    partner = fn.permute_batch(image, indices=inputs.attribute("partner", np.int32))
    return image + (_inside(inputs) != 0) * (partner - image)


def _paste_regions(image: DataNode, op: ops.Paste, inputs: Inputs) -> DataNode:
    mel = inputs.plan.frontend.mel
    sources, corners, shapes = inputs.several(_regions, 3)
    return fn.multi_paste(
        image,
        in_ids=sources,
        in_anchors=corners,
        out_anchors=corners,
        shapes=shapes,
        output_size=[mel.n_mels, mel.frames],
        dtype=types.FLOAT,
    )


def _regions(op: ops.Paste, plan: Plan | TrackPlan) -> tuple[Array, Array, Array]:
    """Return sources, corners and shapes of what to paste: the whole image, then the partner's boxes."""
    n_mels, frames = plan.frontend.mel.n_mels, plan.frontend.mel.frames
    boxes = np.clip(op.boxes, 0, [n_mels, n_mels, frames, frames])
    # DALI pastes no empty region: instead, a pixel of the image itself.
    empty = (boxes[..., 1] <= boxes[..., 0]) | (boxes[..., 3] <= boxes[..., 2])
    boxes = np.where(empty[..., None], [0, 1, 0, 1], boxes)
    own = np.arange(len(boxes))[:, None]
    whole = np.broadcast_to([0, n_mels, 0, frames], (len(boxes), 1, 4))
    regions = np.concatenate([whole, boxes], axis=1).astype(np.int32)
    sources = np.concatenate([own, np.where(empty, own, op.partner[:, None])], axis=1)
    corners = np.ascontiguousarray(regions[..., ::2])
    return sources.astype(np.int32), corners, regions[..., 1::2] - corners


def _erase(image: DataNode, op: ops.Erase, inputs: Inputs) -> DataNode:
    return image * (_inside(inputs) == 0)


def _erase_regions(image: DataNode, op: ops.Erase, inputs: Inputs) -> DataNode:
    corners, shapes = inputs.several(_corners_and_shapes, 2)
    return fn.erase(image, anchor=corners, shape=shapes, axis_names="HW", fill_value=0.0)


def _corners_and_shapes(op: ops.Erase, plan: Plan | TrackPlan) -> tuple[Array, Array]:
    corners = op.boxes[..., ::2].reshape(len(op.boxes), -1).astype(np.float32)
    return corners, op.boxes[..., 1::2].reshape(corners.shape).astype(np.float32) - corners


def _flip(image: DataNode, op: ops.Flip, inputs: Inputs) -> DataNode:
    """Read an axis backwards: a resize to the same size, exact, of a region that begins at its end."""
    size = inputs.plan.frontend.mel.n_mels, inputs.plan.frontend.mel.frames
    start, end = inputs.several(_flip_corners, 2)
    return _resized(image, start, end, size, types.INTERP_NN, inputs)


def _flip_corners(op: ops.Flip, plan: Plan | TrackPlan) -> tuple[Array, Array]:
    mel = plan.frontend.mel
    far = np.stack([op.mels * mel.n_mels, op.frames * mel.frames], axis=-1).astype(np.float32)
    return far, np.array([mel.n_mels, mel.frames], dtype=np.float32) - far


def _flip_axes(image: DataNode, op: ops.Flip, inputs: Inputs) -> DataNode:
    return fn.flip(
        image, vertical=inputs.attribute("mels", np.int32), horizontal=inputs.attribute("frames", np.int32)
    )


def _warp(image: DataNode, op: ops.Warp, inputs: Inputs) -> DataNode:
    if inputs.attribute("on", bool):
        image = _warped(image, "mels", op.mels.shape[1] - 1, inputs)
        image = _warped(image, "frames", op.frames.shape[1] - 1, inputs)
    # What two branches gave lies in pieces, and as an output would be copied piece by piece.
    return image * 1.0


def _warped(image: DataNode, name: str, cells: int, inputs: Inputs) -> DataNode:
    """Return the cells of the original along the axis `name`, each resized to so many pixels."""
    mel = inputs.plan.frontend.mel
    axis = ("mels", "frames").index(name)
    fitted = []
    for cell, pixels in enumerate(np.diff(cell_edges((mel.n_mels, mel.frames)[axis], cells)).tolist()):
        size = (pixels, mel.frames) if axis == 0 else (mel.n_mels, pixels)
        start, end = inputs.several(partial(_cell_corners, name, cell), 2)
        fitted.append(_resized(image, start, end, size, types.INTERP_LINEAR, inputs))
    return fn.cat(*fitted, axis=axis)


def _cell_corners(name: str, cell: int, op: ops.Warp, plan: Plan | TrackPlan) -> tuple[Array, Array]:
    """Return the corners of a cell of the original: its edges along one axis, all of the other."""
    edges, mel = getattr(op, name), plan.frontend.mel
    axis, across = (0, mel.frames) if name == "mels" else (1, mel.n_mels)
    corners = np.zeros((2, len(edges), 2), dtype=np.float32)
    corners[1] = across
    corners[:, :, axis] = edges[:, cell : cell + 2].T
    return corners[0], corners[1]


def _function(image: DataNode, op: ops.ImageFunction, inputs: Inputs) -> DataNode:
    return op.dali(image, inputs.values(list(op.values)))


ON_GPU: ImageNodes = {
    ops.MixImages: _mix,
    ops.Paste: _paste,
    ops.Erase: _erase,
    ops.Flip: _flip,
    ops.Warp: _warp,
    ops.ImageFunction: _function,
}
ON_CPU: ImageNodes = {
    **ON_GPU,
    ops.MixImages: _mix_some,
    ops.Paste: _paste_regions,
    ops.Erase: _erase_regions,
    ops.Flip: _flip_axes,
}
"""On the CPU, DALI's own operators for boxes and flips are the fastest, and a branch spares the images that
are not mixed. On a GPU, `erase` stops the host, `flip` starts a kernel for every sample, the host sorts the
boxes of `multi_paste`, and branches scatter a batch. There, arithmetic and a resize do the same."""


def _resized(
    image: DataNode, start: DataNode, end: DataNode, size: tuple[int, int], interpolation: Any, inputs: Inputs
) -> DataNode:
    """Return what lies between the corners `start` and `end` as an image of `size`."""
    return fn.resize(
        image,
        size=[float(side) for side in size],
        roi_start=start,
        roi_end=end,
        interp_type=interpolation,
        antialias=False,
        minibatch_size=inputs.batch_size,
    )
