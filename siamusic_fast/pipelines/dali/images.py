"""The changes after the spectrogram, in DALI: what each is fed, and its nodes on [n_mels, frames, 1]."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, types

from siamusic_fast.config import MelConfig
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
from siamusic_fast.pipelines.dali.nodes import DataNode, Inputs
from siamusic_fast.pipelines.draws import Array


class Kind(NamedTuple):
    """How one kind of change is done here."""

    arrays: Callable[[Any, MelConfig], dict[str, Array]]
    """Returns what the nodes are fed, by name; every array has a row for each sample."""
    nodes: Callable[[DataNode, Any, Inputs], DataNode]
    """Returns the changed image."""


def _mix_all_arrays(change: MixImages, mel: MelConfig) -> dict[str, Array]:
    return {"partner": change.partner.astype(np.int32), "weight": change.weight.astype(np.float32)}


def _mix_all(image: DataNode, change: MixImages, inputs: Inputs) -> DataNode:
    partner = fn.permute_batch(image, indices=inputs.cpu("partner"))
    return image + inputs.data("weight") * (partner - image)


def _mix_arrays(change: MixImages, mel: MelConfig) -> dict[str, Array]:
    return {**_mix_all_arrays(change, mel), "on": change.weight != 0}


def _mix(image: DataNode, change: MixImages, inputs: Inputs) -> DataNode:
    partner = fn.permute_batch(image, indices=inputs.cpu("partner"))  # of the whole batch: not in the branch
    if inputs.cpu("on"):
        image = image + inputs.data("weight") * (partner - image)
    return image


def _bit_arrays(change: Paste | Erase, mel: MelConfig) -> dict[str, Array]:
    of_rows, of_columns = box_bits(change.boxes, mel.n_mels, mel.frames)
    return {"rows": of_rows[:, :, None, None], "columns": of_columns[:, None, :, None]}


def _paste_bit_arrays(change: Paste, mel: MelConfig) -> dict[str, Array]:
    return {"partner": change.partner.astype(np.int32), **_bit_arrays(change, mel)}


def _paste_by_bits(image: DataNode, change: Paste, inputs: Inputs) -> DataNode:
    partner = fn.permute_batch(image, indices=inputs.cpu("partner"))
    inside = (inputs.data("rows") & inputs.data("columns")) != 0
    return image + inside * (partner - image)


def _erase_by_bits(image: DataNode, change: Erase, inputs: Inputs) -> DataNode:
    return image * ((inputs.data("rows") & inputs.data("columns")) == 0)


def _paste_arrays(change: Paste, mel: MelConfig) -> dict[str, Array]:
    """Return the regions to paste: all of the image itself, then the boxes of the partner."""
    extent = [mel.n_mels, mel.n_mels, mel.frames, mel.frames]
    boxes = np.clip(change.boxes, 0, extent)
    # DALI pastes no empty region: instead, a pixel of the image itself.
    empty = (boxes[..., 1] <= boxes[..., 0]) | (boxes[..., 3] <= boxes[..., 2])
    boxes = np.where(empty[..., None], [0, 1, 0, 1], boxes)
    own = np.arange(len(boxes))[:, None]
    whole = np.broadcast_to([0, mel.n_mels, 0, mel.frames], (len(boxes), 1, 4))
    regions = np.concatenate([whole, boxes], axis=1).astype(np.int32)
    sources = np.concatenate([own, np.where(empty, own, change.partner[:, None])], axis=1)
    return {
        "sources": sources.astype(np.int32),
        "corners": np.ascontiguousarray(regions[..., ::2]),
        "shapes": regions[..., 1::2] - regions[..., ::2],
    }


def _paste(image: DataNode, change: Paste, inputs: Inputs) -> DataNode:
    corners = inputs.cpu("corners")
    return fn.multi_paste(
        image,
        in_ids=inputs.cpu("sources"),
        in_anchors=corners,
        out_anchors=corners,
        shapes=inputs.cpu("shapes"),
        output_size=[inputs.mel.n_mels, inputs.mel.frames],
        dtype=types.FLOAT,
    )


def _erase_arrays(change: Erase, mel: MelConfig) -> dict[str, Array]:
    corners, shapes = change.boxes[..., ::2], change.boxes[..., 1::2] - change.boxes[..., ::2]
    flat = (len(change.boxes), -1)
    return {
        "corners": corners.reshape(flat).astype(np.float32),
        "shapes": shapes.reshape(flat).astype(np.float32),
    }


def _erase(image: DataNode, change: Erase, inputs: Inputs) -> DataNode:
    corners, shapes = inputs.cpu("corners"), inputs.cpu("shapes")
    return fn.erase(image, anchor=corners, shape=shapes, axis_names="HW", fill_value=0.0)


def _flip_arrays(change: Flip, mel: MelConfig) -> dict[str, Array]:
    return {"mels": change.mels.astype(np.int32), "frames": change.frames.astype(np.int32)}


def _flip(image: DataNode, change: Flip, inputs: Inputs) -> DataNode:
    return fn.flip(image, vertical=inputs.cpu("mels"), horizontal=inputs.cpu("frames"))


def _corner_arrays(change: Flip, mel: MelConfig) -> dict[str, Array]:
    far = np.stack([change.mels * mel.n_mels, change.frames * mel.frames], axis=-1).astype(np.float32)
    return {"start": far, "end": np.array([mel.n_mels, mel.frames], dtype=np.float32) - far}


def _flip_by_resize(image: DataNode, change: Flip, inputs: Inputs) -> DataNode:
    """Read an axis backwards: a resize to the same size, exact, of a region that begins at its end."""
    mel = inputs.mel
    size = (mel.n_mels, mel.frames)
    return _resized(image, inputs.cpu("start"), inputs.cpu("end"), size, types.INTERP_NN, inputs)


def _warp_arrays(change: Warp, mel: MelConfig) -> dict[str, Array]:
    arrays = {"on": change.on}
    for axis, edges in enumerate((change.mels, change.frames)):
        across = np.full(len(edges), (mel.frames, mel.n_mels)[axis])
        for cell in range(edges.shape[1] - 1):
            for corner, along, other in (
                ("start", edges[:, cell], 0 * across),
                ("end", edges[:, cell + 1], across),
            ):
                pair = (along, other) if axis == 0 else (other, along)
                arrays[f"{axis}.{cell}.{corner}"] = np.stack(pair, axis=-1).astype(np.float32)
    return arrays


def _warp(image: DataNode, change: Warp, inputs: Inputs) -> DataNode:
    shape = (inputs.mel.n_mels, inputs.mel.frames)
    cells = [cell_edges(shape[axis], (change.mels, change.frames)[axis].shape[1] - 1) for axis in range(2)]
    if inputs.cpu("on"):
        for axis in range(2):
            image = _fitted(image, np.diff(cells[axis]).tolist(), shape, axis, inputs.of(f"{axis}"))
    # What two branches gave lies in pieces, and as an output would be copied piece by piece.
    return image * 1.0


def _fitted(
    image: DataNode, extents: list[int], shape: tuple[int, int], axis: int, inputs: Inputs
) -> DataNode:
    """Return the cells of the original, each fitted to so many pixels along `axis`."""
    cells = []
    for cell in range(len(extents)):
        size = (extents[cell], shape[1]) if axis == 0 else (shape[0], extents[cell])
        at = inputs.of(f"{cell}")
        cells.append(_resized(image, at.cpu("start"), at.cpu("end"), size, types.INTERP_LINEAR, inputs))
    return fn.cat(*cells, axis=axis)


def _function_arrays(change: ImageFunction, mel: MelConfig) -> dict[str, Array]:
    return dict(change.values)


def _function(image: DataNode, change: ImageFunction, inputs: Inputs) -> DataNode:
    return change.dali(image, {value: inputs.data(value) for value in change.values})


ON_CPU: dict[type[ImageChange], Kind] = {
    MixImages: Kind(_mix_arrays, _mix),
    Paste: Kind(_paste_arrays, _paste),
    Erase: Kind(_erase_arrays, _erase),
    Flip: Kind(_flip_arrays, _flip),
    Warp: Kind(_warp_arrays, _warp),
    ImageFunction: Kind(_function_arrays, _function),
}
ON_GPU = ON_CPU | {
    MixImages: Kind(_mix_all_arrays, _mix_all),
    Paste: Kind(_paste_bit_arrays, _paste_by_bits),
    Erase: Kind(_bit_arrays, _erase_by_bits),
    Flip: Kind(_corner_arrays, _flip_by_resize),
}
"""On the CPU, DALI's own operators for boxes and flips are the fastest, and a branch spares the images that
are not mixed. On a GPU, `erase` stops the host, `flip` starts a kernel for every sample, the host sorts the
boxes of `multi_paste`, and branches scatter a batch: there, arithmetic and a resize do the same."""


def _resized(
    image: DataNode,
    start: DataNode,
    end: DataNode,
    size: tuple[int, int],
    interpolation: Any,
    inputs: Inputs,
) -> DataNode:
    """Return what lies between the corners `start` and `end` as an image of `size`."""
    return fn.resize(
        image,
        size=[float(side) for side in size],
        roi_start=start,
        roi_end=end,
        interp_type=interpolation,
        antialias=False,
        minibatch_size=inputs.rows,
    )
