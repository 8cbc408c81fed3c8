"""How the torch backend makes a batch: it reads, then it computes, be it in another process.

What is drawn for a batch depends on the seed, the epoch, the rank and its place in the epoch alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamusic_fast.pipelines.augment import AudioAugmentation
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.torch_augment import Draws, Effect, Waves, change, check_known, effect
from siamusic_fast.pipelines.torch_features import PITCH_GRID, LogMel, shifted, to_float
from siamusic_fast.pipelines.torch_source import AUGMENTATIONS, CROPS, Crops, Place, Plan, Tracks, nearest

Array = NDArray[Any]
Outputs = tuple[Tensor, Tensor]


class Maker(ABC):
    """Makes the batches of one loader."""

    def __init__(self, plan: Plan, tracks: Tracks, features: LogMel, *, per_batch: bool) -> None:
        """Compute one sample at a time, which stays in the cache, or `per_batch`."""
        self.plan = plan
        self._tracks = tracks
        self._features = features
        self._per_batch = per_batch

    @property
    def samples(self) -> int:
        """Longest crop that is read of a track."""
        return self._features.mel.samples

    def read(self, place: Place) -> Crops:
        """Return a crop of every track of a batch, at random positions."""
        tracks = self.plan.tracks(place)
        positions = self.plan.draws(place, CROPS, len(tracks)).uniform(0, 1)
        return self._tracks.crops(tracks, positions, self.samples)

    @abstractmethod
    def compute(self, crops: Crops, place: Place) -> Outputs:
        """Return the batch that the loader gives, on the device of `crops.pcm`."""

    def _plain(self, pcm: Tensor) -> Tensor:
        return self._images(len(pcm), pcm.device, lambda rows: self._features.plain(pcm[rows]))

    def _images(self, count: int, device: torch.device, make: Callable[[slice], Tensor]) -> Tensor:
        mel = self._features.mel
        if self._per_batch:
            return make(slice(0, count))
        images = torch.empty(count, mel.n_mels, mel.frames, device=device)
        for row in range(count):
            images[row] = make(slice(row, row + 1))[0]
        return images


class LabelledCrops(Maker):
    """One crop of every track, and its label."""

    def compute(self, crops: Crops, place: Place) -> Outputs:
        return self._plain(crops.pcm)[:, None], crops.labels


class WholeTracks(Maker):
    """Evenly spaced crops of every track, and its label."""

    def __init__(self, crops: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._positions = np.array([0.5]) if crops == 1 else np.arange(crops) / (crops - 1)

    def read(self, place: Place) -> Crops:
        tracks = self.plan.tracks(place)
        each, positions = np.repeat(tracks, len(self._positions)), np.tile(self._positions, len(tracks))
        crops = self._tracks.crops(each, positions, self.samples)
        return crops._replace(labels=crops.labels[:: len(self._positions)])

    def compute(self, crops: Crops, place: Place) -> Outputs:
        images = self._plain(crops.pcm)
        return images.view(-1, len(self._positions), 1, *images.shape[1:]), crops.labels


class TwoViews(Maker):
    """Two differently augmented views of the same moment of every track."""

    def __init__(self, recipe: Recipe, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        check_known(recipe)
        self._audio = [step for step in recipe if isinstance(step, AudioAugmentation)]
        self._image = [step for step in recipe if not isinstance(step, AudioAugmentation)]

    @property
    def samples(self) -> int:
        return math.ceil(math.prod(step.reach for step in self._audio) * super().samples)

    def compute(self, crops: Crops, place: Place) -> Outputs:
        draws = self.plan.draws(place, AUGMENTATIONS, len(crops.pcm))
        if self._audio:
            images = [self._from_audio(crops, draws) for _ in range(2)]
        else:
            image = self._plain(crops.pcm)  # computed once, augmented twice
            images = [image, image.clone() if self._image else image]
        for step in self._image:
            for image in images:
                change(image, step, draws)
        return images[0][:, None], images[1][:, None]

    def _from_audio(self, crops: Crops, draws: Draws) -> Tensor:
        """Return the spectrograms of the crops at a tempo, a pitch and with the changes that are drawn.

        With rate r and pitch k, r times as many samples are taken and resampled to 1 / k of their number: the
        pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
        """
        mel, partners = self._features.mel, draws.partners()
        effects = [effect(step, draws) for step in self._audio]
        lengths, positions = crops.lengths.numpy(), crops.positions.numpy()
        # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
        fastest = np.minimum(lengths, lengths[partners]) / mel.samples
        rate = np.minimum(_product(effects, "rate", draws.count), fastest)
        grid_pitch = np.rint(PITCH_GRID * _product(effects, "pitch", draws.count)).astype(np.int64)
        samples = np.floor(rate * mel.samples + 0.5).astype(np.int64)
        starts = nearest(positions, lengths - samples)
        partner_starts = nearest(positions[partners], lengths[partners] - samples)
        step = rate * PITCH_GRID / grid_pitch
        changes = [each.wave for each in effects if each.wave]

        def make(rows: slice) -> Tensor:
            wave = _cut(crops.pcm[rows], starts[rows], samples[rows])
            ends = _column(samples[rows], wave)
            if changes:
                partner = _cut(_rows(crops.pcm, partners[rows]), partner_starts[rows], samples[rows])
                for change_wave in changes:
                    wave = change_wave(Waves(wave, partner, ends, rows))
            wave, ends = shifted(wave, ends, grid_pitch[rows].tolist())
            return self._features.stretched(wave, ends, _column(step[rows].astype(np.float32), wave))

        return self._images(draws.count, crops.pcm.device, make)


def _product(effects: list[Effect], name: str, count: int) -> Array:
    return reduce(np.multiply, (getattr(each, name) for each in effects), np.ones(count))


def _cut(pcm: Tensor, starts: Array, samples: Array) -> Tensor:
    """Return `samples` of each row from its start on, float32 in [-1, 1), zeros behind the end."""
    if len(pcm) == 1:
        return to_float(pcm[:, int(starts[0]) : int(starts[0] + samples[0])])
    index = torch.arange(int(samples.max()), device=pcm.device)
    inside = index < _column(samples, pcm)
    where = (index + _column(starts, pcm)).clamp_(max=pcm.shape[1] - 1)
    return to_float(pcm.gather(1, where)).mul_(inside)


def _rows(pcm: Tensor, rows: Array) -> Tensor:
    if len(rows) == 1:
        return pcm[int(rows[0])][None]  # without a copy
    return pcm[torch.from_numpy(rows).to(pcm.device)]


def _column(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, non_blocking=True)[:, None]
