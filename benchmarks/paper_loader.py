"""A peer of the loaders: how the code behind the paper feeds its network, written anew from its description.

Every track is a .npy file of float32 samples, read whole; a crop is cut in Python; torchaudio computes the
spectrograms of a batch; and every augmentation is drawn once for a batch and computed on the CPU. The
probabilities and the ranges are those of our augmentations, so that the same work is done.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import horizontal_flip, vertical_flip

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.image_augmentations import (
    CutMix,
    CutOut,
    HorizontalFlip,
    Mask,
    Mixup,
    VerticalFlip,
)
from siamusic_fast.pipelines.plan import Spans
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.pipelines.wave_augmentations import PitchShift, TimeStretch, WaveMixup

AUGS = ("none", "image", "audio")
"""What this peer can make."""
_EPOCH = 64
"""Batches in an epoch, at least."""
_FULL_SCALE = 32_768

_WAVE_MIX, _PITCH, _STRETCH = WaveMixup(), PitchShift(), TimeStretch()
_CUT_MIX, _MIX, _MASK, _CUT_OUT = CutMix(), Mixup(), Mask(), CutOut()
_SIDEWAYS, _UPSIDE_DOWN = HorizontalFlip(), VerticalFlip()


def needed(mel: MelConfig, aug: str) -> int:
    """Return how many samples are cut out of a track: a stretch asks for more than it gives."""
    return round(_STRETCH.max_rate * mel.samples) if aug == "audio" else mel.samples


def write_arrays(
    tracks: Tracks, frontend: Frontend, folder: Path, count: int, min_samples: int = 0
) -> list[Path]:
    """Write up to `count` of `tracks` to `folder` as .npy files of float32 samples, as they are.

    Those of less than `min_samples` samples are left out.
    """
    reader = Reader(tracks, frontend)
    paths: list[Path] = []
    for track in np.flatnonzero(tracks.samples >= min_samples)[:count]:
        samples = tracks.samples[[track]]
        pcm = np.empty((1, int(samples[0])), dtype=np.int16)
        whole = Spans(tracks=np.array([track]), starts=np.zeros(1, dtype=np.int64), samples=samples)
        reader.read(whole, slice(0, 1), pcm)
        paths.append(folder / f"{track:06d}.npy")
        np.save(paths[-1], pcm[0].astype(np.float32) / _FULL_SCALE)
    reader.close()
    return paths


@contextmanager
def paper_loader(
    paths: list[Path],
    frontend: Frontend,
    *,
    aug: str,
    batch_size: int,
    procs: int,
) -> Iterator["_PaperLoader"]:
    """Give (view_1, view_2), float32 [batch_size, 1, n_mels, frames]; `aug` is none, image or audio.

    `paths` are of tracks that are long enough; they are repeated, since workers begin each epoch anew, which
    among the many batches of a large data set does not matter.
    """
    mel = frontend.mel
    crops = DataLoader(
        _Crops(paths * -(-_EPOCH * batch_size // len(paths)), needed(mel, aug)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=procs,
        persistent_workers=procs > 0,
    )
    log_mel = torch.nn.Sequential(
        torchaudio.transforms.MelSpectrogram(
            sample_rate=mel.sample_rate,
            n_fft=mel.n_fft,
            hop_length=mel.hop_length,
            n_mels=mel.n_mels,
            f_max=mel.f_max,
        ),
        torchaudio.transforms.AmplitudeToDB("power"),
    )
    yield _PaperLoader(crops, frontend, log_mel, aug)


class _Crops(Dataset[Tensor]):
    def __init__(self, paths: list[Path], samples: int) -> None:
        self._paths = paths
        self._samples = samples

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        audio = np.load(self._paths[index])
        start = random.randint(0, len(audio) - self._samples)
        return torch.from_numpy(audio[start : start + self._samples])


@dataclass
class _PaperLoader:
    crops: DataLoader[Tensor]
    frontend: Frontend
    log_mel: torch.nn.Module
    aug: str
    _waves: Iterator[Tensor] = field(init=False, default_factory=lambda: iter(()))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._waves = iter(self.crops)
        for wave in self._waves:
            yield self._view(wave), self._view(wave)

    def skip(self, count: int) -> None:
        """Pass over `count` batches that were read, at most to the end of an epoch: the next has none yet."""
        for _ in islice(self._waves, count):
            pass

    def _view(self, wave: Tensor) -> Tensor:
        if self.aug == "audio":
            wave = _augmented_wave(wave, self.frontend.mel)[:, : self.frontend.mel.samples]
        mean, std = (torch.from_numpy(values).float() for values in self.frontend.statistics)
        image: Tensor = (self.log_mel(wave) - mean) / std
        if self.aug == "image":
            image = _augmented_image(image)
        return image[:, None]


def _augmented_wave(wave: Tensor, mel: MelConfig) -> Tensor:
    """Mix, shift the pitch of, and stretch a batch of waves, each or not, with torchaudio's functions."""
    if random.random() < _WAVE_MIX.p:
        weight = random.betavariate(_WAVE_MIX.alpha, _WAVE_MIX.alpha)
        wave = weight * wave + (1 - weight) * wave[torch.randperm(len(wave))]
    if random.random() < _PITCH.p:
        limit = int(_PITCH.semitones)
        wave = _shifted(wave, random.randint(-limit, limit), mel)
    if random.random() < _STRETCH.p:
        wave = _stretched(wave, random.uniform(_STRETCH.min_rate, _STRETCH.max_rate), mel)
    return wave


def _shifted(wave: Tensor, semitones: int, mel: MelConfig) -> Tensor:
    """Shift the pitch as `torchaudio.functional.pitch_shift` does: stretch, then resample to the old length.

    That function itself takes 12 s for 4 semitones down, as its two sample rates have no common divisor; here
    the first is rounded to 50 Hz.
    """
    factor = 2 ** (semitones / 12)
    window = torch.hann_window(mel.n_fft)
    spectrum = torch.stft(wave, mel.n_fft, mel.hop_length, window=window, return_complex=True)
    stretch = torchaudio.transforms.TimeStretch(mel.hop_length, mel.n_fft // 2 + 1, fixed_rate=1 / factor)
    longer = torch.istft(
        stretch(spectrum), mel.n_fft, mel.hop_length, window=window, length=round(wave.shape[1] * factor)
    )
    rate = 50 * round(mel.sample_rate * factor / 50)
    shifted: Tensor = torchaudio.functional.resample(longer, rate, mel.sample_rate)
    return shifted[:, : wave.shape[1]]


def _stretched(wave: Tensor, rate: float, mel: MelConfig) -> Tensor:
    """Stretch as much of `wave` as a crop needs with a phase vocoder."""
    window = torch.hann_window(mel.n_fft)
    needed = wave[:, : round(rate * mel.samples)]
    spectrum = torch.stft(needed, mel.n_fft, mel.hop_length, window=window, return_complex=True)
    stretch = torchaudio.transforms.TimeStretch(mel.hop_length, mel.n_fft // 2 + 1, fixed_rate=rate)
    return torch.istft(stretch(spectrum), mel.n_fft, mel.hop_length, window=window, length=mel.samples)


def _augmented_image(image: Tensor) -> Tensor:
    """Apply each augmentation of `image`, or not, to a batch [batch, n_mels, frames]."""
    _, n_mels, frames = image.shape
    if random.random() < _CUT_MIX.p:
        side = random.betavariate(_CUT_MIX.alpha, _CUT_MIX.alpha) ** 0.5
        box = _box(image, int(side * n_mels), int(side * frames))
        image = image.clone()
        image[box] = image[torch.randperm(len(image))][box]
    if random.random() < _MIX.p:
        weight = random.betavariate(_MIX.alpha, _MIX.alpha)
        image = weight * image + (1 - weight) * image[torch.randperm(len(image))]
    if random.random() < _MASK.p:
        image = image.clone()
        if random.random() < 0.5:
            image[_box(image, _width(_MASK.max_mels, n_mels), 2 * frames)] = 0
        else:
            image[_box(image, 2 * n_mels, _width(_MASK.max_frames, frames))] = 0
    if random.random() < _SIDEWAYS.p:
        image = horizontal_flip(image)
    if random.random() < _UPSIDE_DOWN.p:
        image = vertical_flip(image)
    if random.random() < _CUT_OUT.p:
        image = image.clone()
        for _ in range(_CUT_OUT.holes):
            image[_box(image, _CUT_OUT.size, _CUT_OUT.size)] = 0
    return image


def _width(max_share: float, whole: int) -> int:
    """Return the width of a band: at least 1, up to a share `max_share` of the `whole`."""
    return random.randint(1, max(1, round(max_share * whole)))


def _box(image: Tensor, height: int, width: int) -> tuple[slice, slice, slice]:
    """Return a box around a random center, cut off at the borders."""
    _, n_mels, frames = image.shape
    top = random.randrange(n_mels) - height // 2
    left = random.randrange(frames) - width // 2
    rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
    return slice(None), rows, columns
