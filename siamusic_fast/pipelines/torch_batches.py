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
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.torch_augment import Draws, Effect, Waves, change, check_known, effect
from siamusic_fast.pipelines.torch_features import PITCH_GRID, LogMel, on_device, shifted, to_float
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

    def close(self) -> None:
        """Let go of the files that were read."""
        self._tracks.close()

    @property
    def span(self) -> int:
        """Samples of the shards that a crop takes."""
        return self.plan.source.span(self._features.mel)

    @property
    def samples(self) -> int:
        """Longest crop that is read of a track."""
        return self.span

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


class Augmented(Maker):
    """What makes crops to which a recipe is applied."""

    def __init__(self, recipe: Recipe, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        check_known(recipe)
        self._audio = [step for step in recipe if isinstance(step, AudioAugmentation)]
        self._image = [step for step in recipe if not isinstance(step, AudioAugmentation)]

    @property
    def samples(self) -> int:
        return math.ceil(math.prod(step.reach for step in self._audio) * self.span)

    def _views(self, views: list[Crops], place: Place) -> list[Tensor]:
        """Return the images, [batch, n_mels, frames], of crops that may be the same ones."""
        draws = self.plan.draws(place, AUGMENTATIONS, len(views[0].pcm))
        if self._audio:
            images = [self._from_audio(crops, draws) for crops in views]
        else:
            first = self._plain(views[0].pcm)
            rest = [
                self._once_more(first) if crops is views[0] else self._plain(crops.pcm) for crops in views[1:]
            ]
            images = [first, *rest]
        for step in self._image:
            for image in images:
                change(image, step, draws)
        return images

    def _once_more(self, image: Tensor) -> Tensor:
        """Return `image`, computed once, to be augmented twice."""
        return image.clone() if self._image else image

    def _from_audio(self, crops: Crops, draws: Draws) -> Tensor:
        """Return the spectrograms of the crops at a tempo, a pitch and with the changes that are drawn.

        With rate r and pitch k, r times as many samples are taken and resampled to 1 / k of their number: the
        pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
        """
        span, partners = self.span, draws.partners()
        effects = [effect(step, draws) for step in self._audio]
        lengths, positions = crops.lengths.numpy(), crops.positions.numpy()
        # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
        mixes = any(step.mixes for step in self._audio)
        fewest = np.minimum(lengths, lengths[partners]) if mixes else lengths
        rate = np.minimum(_product(effects, "rate", draws.count), fewest / span)
        grid_pitch = np.rint(PITCH_GRID * _product(effects, "pitch", draws.count)).astype(np.int64)
        samples = np.floor(rate * span + 0.5).astype(np.int64)
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
            wave, ends = self._features.at_rate(wave), self._features.lengths_at_rate(ends)
            wave, ends = shifted(wave, ends, grid_pitch[rows])
            return self._features.stretched(wave, ends, _column(step[rows].astype(np.float32), wave))

        return self._images(draws.count, crops.pcm.device, make)


class TwoViews(Augmented):
    """Two differently augmented views of every track, of the same moment or of two."""

    def __init__(self, recipe: Recipe, pairing: Pairing, *args: Any, **options: Any) -> None:
        super().__init__(recipe, *args, **options)
        self._pairing = pairing

    def read(self, place: Place) -> Crops:
        """Return a crop of every track; if the second views have moments of their own, theirs after them."""
        tracks = self.plan.tracks(place)
        draws = self.plan.draws(place, CROPS, len(tracks))
        first = draws.uniform(0, 1)
        if not self._pairing.independent:
            return self._tracks.crops(tracks, first, self.samples)
        low, high = np.zeros_like(first), np.ones_like(first)
        if self._pairing.max_distance is not None:
            spare = np.maximum(self._tracks.lengths(tracks) - self.span, 1)
            reach = self._pairing.max_distance * self.plan.source.rate / spare
            low, high = np.maximum(first - reach, 0), np.minimum(first + reach, 1)
        second = low + (high - low) * draws.uniform(0, 1)
        return self._tracks.crops(np.tile(tracks, 2), np.concatenate([first, second]), self.samples)

    def compute(self, crops: Crops, place: Place) -> Outputs:
        views = [crops, crops]
        if self._pairing.independent:
            views = [Crops(*half) for half in zip(*(part.chunk(2) for part in crops), strict=True)]
        view_1, view_2 = self._views(views, place)
        return view_1[:, None], view_2[:, None]


class LabelledCrops(Augmented):
    """One augmented crop of every track, and its label."""

    def compute(self, crops: Crops, place: Place) -> Outputs:
        (images,) = self._views([crops], place)
        return images[:, None], crops.labels


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
    return pcm[on_device(rows, pcm.device)]


def _column(values: Array, like: Tensor) -> Tensor:
    return on_device(values, like.device)[:, None]
