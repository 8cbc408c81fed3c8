"""What changes and audio steps do, in numpy, torchvision and torchaudio: the other side of the tests."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from torchvision.transforms import functional as vision
from webdataset import tariterators

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.ops import (
    Erase,
    Flip,
    ImageFunction,
    ImageOp,
    MixImages,
    Paste,
    Warp,
)
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.helpers import Array


def changed(images: Array, change: ImageOp) -> Array:
    """Return `images`, [rows, n_mels, frames], one by one as the text of each kind of change says."""
    return np.stack([_changed(images, row, change) for row in range(len(images))])


def _changed(images: Array, row: int, change: ImageOp) -> Array:
    image = images[row].copy()
    match change:
        case MixImages():
            weight = change.weight[row]
            return np.asarray((1 - weight) * image + weight * images[change.partner[row]])
        case Paste() | Erase():
            for top, bottom, left, right in change.boxes[row].clip(0).tolist():
                box = slice(top, bottom), slice(left, right)
                image[box] = images[change.partner[row]][box] if isinstance(change, Paste) else 0
        case Flip():
            turned = torch.from_numpy(image)
            turned = vision.vflip(turned) if change.mels[row] else turned
            image = (vision.hflip(turned) if change.frames[row] else turned).numpy()
        case ImageFunction():  # of Tilt: others are stated where they are tested
            image = image + change.values["line"][row, :, 0]
        case Warp() if change.on[row]:
            for axis, edges in enumerate((change.mels[row], change.frames[row])):
                image = _stretched(image, edges, axis)
    return np.asarray(image)


def _stretched(image: Array, edges: Array, axis: int) -> Array:
    """Return `image` with what lies between consecutive `edges` along `axis` fitted to equal cells.

    The center of pixel i lies at i + 0.5; beyond the first and the last center, their values are held.
    """
    extent, cells = image.shape[axis], len(edges) - 1
    sizes = np.diff([round(extent * cell / cells) for cell in range(cells + 1)])
    centers = np.concatenate(
        [
            begin + (np.arange(size) + 0.5) * (end - begin) / size
            for (begin, end), size in zip(itertools.pairwise(edges), sizes, strict=True)
        ]
    )
    known = np.arange(extent) + 0.5
    return np.apply_along_axis(lambda line: np.interp(centers, known, line), axis, image)


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


def lengthened(audio: Array, samples: int, short_tracks: str) -> Array:
    """Return `audio` repeated as often as makes `samples`, or padded with zeros until it does."""
    if short_tracks == "pad":
        return np.pad(audio, (0, max(0, samples - len(audio))))
    return np.tile(audio, max(1, -(-samples // len(audio))))


def torchaudio_log_mel(audio: Array, mel: MelConfig) -> Array:
    """Return the log-mels of `audio` in units of 16 bits, in dB, by torchaudio."""
    power = torchaudio.transforms.MelSpectrogram(
        sample_rate=mel.sample_rate,
        n_fft=mel.n_fft,
        win_length=mel.window,
        hop_length=mel.hop_length,
        n_mels=mel.n_mels,
        f_max=mel.f_max,
    )(torch.from_numpy(audio).float() / 32768)
    to_decibels = torchaudio.transforms.AmplitudeToDB("power")
    to_decibels.amin = 10 ** (mel.floor_db / 10)
    return np.asarray(to_decibels(power))


def rounding_decibels(log_mels: Array, *, axis: int | tuple[int, ...]) -> Array:
    """Return by how much two float32 FFTs of the same audio may differ in each of `log_mels`, in dB.

    An FFT rounds every bin by a few units of 2^-24 of the loudest amplitude of its frame. A bin d dB below it
    is smaller by the factor 10^(d / 20), so that k such units move it by

        20 / ln(10) k 2^-24 10^(d / 20) dB,

    which for k = 6 is 1e-3 dB at d = 50. The loudest bin of a frame is at most 3 dB above the loudest band,
    because one of the two filters that it lies in has at least half of its height there. The loudest band is
    looked for along `axis`.
    """
    below = log_mels.max(axis=axis, keepdims=True) + 3 - log_mels
    return np.asarray(1e-3 * np.maximum(1, 10 ** ((below - 50) / 20)))


def vocoded_log_mel(audio: Array, mel: MelConfig, rate: float) -> Array:
    """Return the log-mels of `audio` played at `rate`, by torchaudio's phase vocoder."""
    wave = torch.from_numpy(audio).float() / 32768
    spectrum = torchaudio.transforms.Spectrogram(mel.n_fft, hop_length=mel.hop_length, power=None)(wave)
    bins = mel.n_fft // 2 + 1
    stretch = torchaudio.transforms.TimeStretch(mel.hop_length, bins, fixed_rate=rate)
    scale = torchaudio.transforms.MelScale(mel.n_mels, mel.sample_rate, f_max=mel.f_max, n_stft=bins)
    power = scale(stretch(spectrum).abs().square()[:, : mel.frames])
    return np.asarray(torchaudio.transforms.AmplitudeToDB("power")(power))


def _read_with_webdataset(tar: Path) -> list[dict[str, Any]]:
    with tar.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(tar), "stream": stream}])
        return list(tariterators.group_by_keys(files))
