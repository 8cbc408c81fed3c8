"""What the augmentations do, in numpy and torchvision, given what was drawn: the other side of the tests."""

import io
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torchvision.transforms import functional as vision
from webdataset import tariterators

from siamusic_fast.pipelines.augment import CutOut
from siamusic_fast.pipelines.extras import GridDistortion
from siamusic_fast.pipelines.recipes import Recipe, step_name
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.graphs import Array

Draws = dict[str, Array]


def augmented(images: Array, recipe: Recipe, draws: Draws) -> Array:
    """Return `images`, [tracks, n_mels, frames], after all steps of `recipe`, as `draws` has them."""
    times: Counter[str] = Counter()
    for step in recipe:
        kind = step_name(step)
        times[kind] += 1
        name = kind if times[kind] == 1 else f"{kind}_{times[kind]}"
        own = {key.removeprefix(f"{name}."): draws[key] for key in draws if key.startswith(f"{name}.")}
        changed = STEPS[kind](images, own, step)
        images = np.where(own["on"].astype(bool)[:, None, None], changed, images)
    return images


def samples_of(shard_set: ShardSet) -> list[dict[str, Any]]:
    """Return all samples of the training split in their order, as the `webdataset` library reads them."""
    return [
        sample
        for shard in shard_set.shards(["training"])
        for sample in _read_with_webdataset(shard_set.path(shard.file))
    ]


def pcm_of(shard_set: ShardSet) -> list[Array]:
    """Return the audio of the training split in its order, int16, as soundfile decodes it."""
    return [
        soundfile.read(io.BytesIO(sample[shard_set.codec]), dtype="int16")[0]
        for sample in samples_of(shard_set)
    ]


def crop(audio: Array, samples: int, position: Any) -> Array:
    """Return `samples` of `audio` at `position`, from 0, its start, to 1, its end."""
    start = int(np.floor(np.float32(position) * np.float32(len(audio) - samples) + np.float32(0.5)))
    return audio[start : start + samples]


def stretched_by_interpolation(image: Array, edges: Array, sizes: list[int], axis: int) -> Array:
    """Return `image` with what lies between consecutive `edges` along `axis` fitted to `sizes` pixels.

    The centre of pixel i lies at i + 0.5; beyond the first and the last centre, their values are held.
    """
    centres = np.concatenate(
        [
            start + (np.arange(size) + 0.5) * (end - start) / size
            for (start, end), size in zip(itertools.pairwise(edges.astype(np.float64)), sizes, strict=True)
        ]
    )
    known = np.arange(image.shape[axis]) + 0.5
    return np.apply_along_axis(lambda line: np.interp(centres, known, line), axis, image)


def _read_with_webdataset(tar: Path) -> list[dict[str, Any]]:
    with tar.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(tar), "stream": stream}])
        return list(tariterators.group_by_keys(files))


def _hflip(images: Array, draws: Draws, step: Any) -> Array:
    return np.asarray(vision.hflip(torch.from_numpy(images)))


def _vflip(images: Array, draws: Draws, step: Any) -> Array:
    return np.asarray(vision.vflip(torch.from_numpy(images)))


def _mixup(images: Array, draws: Draws, step: Any) -> Array:
    weight = draws["weight"].reshape(-1, 1, 1)
    return np.asarray(weight * images + (1 - weight) * images[draws["partner"].ravel()])


def _cutmix(images: Array, draws: Draws, step: Any) -> Array:
    result = images.copy()
    for row, partner in enumerate(images[draws["partner"].ravel()]):
        box = _box(draws["anchor"][row], draws["shape"][row])
        result[row][box] = partner[box]
    return result


def _mask(images: Array, draws: Draws, step: Any) -> Array:
    result = images.copy()
    for row in range(len(images)):
        if draws["over_mels"][row]:
            result[row, _band(draws["first_mel"][row], draws["mels"][row])] = 0
        else:
            result[row, :, _band(draws["first_frame"][row], draws["frames"][row])] = 0
    return result


def _cutout(images: Array, draws: Draws, step: CutOut) -> Array:
    result = images.copy()
    for image, anchors in zip(result, draws["anchors"], strict=True):
        for anchor in anchors.reshape(step.holes, 2):
            image[_box(anchor, [step.size, step.size])] = 0
    return result


def _freqmask(images: Array, draws: Draws, step: Any) -> Array:
    result = images.copy()
    for row in range(len(images)):
        for start, width in zip(draws["starts"][row], draws["widths"][row], strict=True):
            result[row, _band(start, width)] = 0
    return result


def _timemask(images: Array, draws: Draws, step: Any) -> Array:
    return _freqmask(images.transpose(0, 2, 1), draws, step).transpose(0, 2, 1)


def _rrc(images: Array, draws: Draws, step: Any) -> Array:
    shape = images.shape[1:]
    result = images.astype(np.float64)
    for row in range(len(images)):
        for axis, (start, extent) in enumerate((("top", "height"), ("left", "width"))):
            edges = np.array([draws[start][row], draws[start][row] + draws[extent][row]])
            result[row] = stretched_by_interpolation(result[row], edges, [shape[axis]], axis)
    return result


def _griddistortion(images: Array, draws: Draws, step: GridDistortion) -> Array:
    shape = images.shape[1:]
    result = images.astype(np.float64)
    for row in range(len(images)):
        for axis, name in enumerate(("rows", "columns")):
            edges = np.concatenate([[0], np.cumsum(draws[name][row], dtype=np.float64)])
            sizes = np.diff([round(shape[axis] * cell / step.steps) for cell in range(step.steps + 1)])
            result[row] = stretched_by_interpolation(result[row], edges, sizes.tolist(), axis)
    return result


def _tilt(images: Array, draws: Draws, step: Any) -> Array:
    line = np.linspace(-1, 1, images.shape[1])
    return images + draws["rise"].reshape(-1, 1, 1) * line[:, None]


def _box(anchor: Any, shape: Any) -> tuple[slice, slice]:
    return _band(anchor[0], shape[0]), _band(anchor[1], shape[1])


def _band(start: Any, width: Any) -> slice:
    """Return where a band lies; what would lie before the image is cut off, as is what lies behind."""
    return slice(max(int(start), 0), max(int(start) + int(width), 0))


STEPS: dict[str, Callable[[Array, Draws, Any], Array]] = {
    "hflip": _hflip,
    "vflip": _vflip,
    "mixup": _mixup,
    "cutmix": _cutmix,
    "mask": _mask,
    "cutout": _cutout,
    "freqmask": _freqmask,
    "timemask": _timemask,
    "rrc": _rrc,
    "griddistortion": _griddistortion,
    "tilt": _tilt,
}
"""What each image step makes of images if it is on, by its name."""
