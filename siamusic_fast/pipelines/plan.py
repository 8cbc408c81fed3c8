"""What every batch of a loader is: its tracks, where each crop is cut, and everything that was drawn.

All that is random is decided here, in numpy, as a function of (seed, epoch, place in the epoch) alone. The
reader fetches the samples that the plan names, and an engine computes the views. Neither draws anything.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.augmentation import ImageAugmentation, WaveAugmentation
from siamusic_fast.pipelines.epoch_order import EpochOrder
from siamusic_fast.pipelines.ops import PITCH_GRID, ImageOp, MixWaves, Speed, WaveOp, merged
from siamusic_fast.pipelines.random_numbers import Array, RandomNumbers
from siamusic_fast.pipelines.recipes import Recipe, aug_name
from siamusic_fast.pipelines.tracks import Tracks

Place = tuple[int, int]
"""An epoch and a batch in it, both from 0."""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The samples to read for a batch: one span of each row, which holds every crop that is cut from it."""

    tracks: Array
    """Number of the track of each row in `Plan.tracks`, int64 [rows]."""
    starts: Array
    """First sample of each span in its track, lengthened if it is short; int64 [rows]."""
    samples: Array
    """Length of each span, int64 [rows]."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of every row of a batch: a crop, and the operations on it.

    span of a track      |-----------------------------|
    crop of view 1          |=======|
    crop of view 2          |==============|
    """

    span_index: int = 0
    """Index in `Batch.spans` of the spans that the crops are cut from."""
    starts: Array
    """First sample of each crop in its span, int64 [rows]."""
    samples: Array
    """Length of each crop, at the sample rate of the shards; int64 [rows]."""
    wave: tuple[WaveOp, ...] = ()
    """Operations before the spectrogram, without `Speed`."""
    grid_pitch: Array | None = None
    """Pitch in units of 1 / `PITCH_GRID`, int64 [rows]. None if neither tempo nor pitch ever changes."""
    stretch: Array | None = None
    """Rate at which the spectrogram is read, float64 [rows]: output frame j is its frame j * stretch."""
    image: tuple[ImageOp, ...] = ()
    """Operations on the spectrogram."""
    drawn: dict[str, WaveOp | ImageOp] = field(default_factory=dict)
    """What each augmentation drew, by its name, to look at."""

    @property
    def plain(self) -> bool:
        """Whether the spectrogram is that of the whole span, as in all plain views of the same spans."""
        return not self.wave and self.stretch is None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Everything about a batch that is decided before any audio is read."""

    place: Place
    """Epoch and number of the batch."""
    tracks: Array
    """Numbers of its tracks in `Plan.tracks`, int64 [tracks]."""
    spans: tuple[Spans, ...]
    """What is read: one for all views, or one for each."""
    views: tuple[View, ...]
    """What is computed."""


class Plan:
    """The batches of a loader, each a pure function of its place.

    Rank r of W takes, of every global batch of W * batch_size places, those from r * batch_size to
    (r + 1) * batch_size - 1. Blocks of `random_numbers.BLOCK` places have random numbers of their own. So a
    global batch of whole blocks is the same however it is shared: 1 x 128, 2 x 64 and 4 x 32 are equal. With
    other sizes it depends on the seed, the batch size and the number of ranks, and on nothing else.
    """

    def __init__(
        self,
        tracks: Tracks,
        frontend: Frontend,
        *,
        recipe: Recipe = (),
        views: int = 1,
        independent: bool = False,
        max_distance: float | None = None,
        batch_size: int = 64,
        shuffle: bool = True,
        crops_per_track: int = 1,
        window: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tracks, self.frontend, self.batch_size = tracks, frontend, batch_size
        self._crops_per_track = crops_per_track
        self.rate = tracks.shard_set.sample_rate
        self.crop_samples = frontend.crop_samples(self.rate)
        self._views, self._independent, self._max_distance = views, independent, max_distance
        self._wave = [one for one in recipe if isinstance(one, WaveAugmentation)]
        self._image = [one for one in recipe if isinstance(one, ImageAugmentation)]
        self._names = _numbered(aug_name(one) for one in (*self._wave, *self._image))
        self._order = EpochOrder(
            crops_per_track * tracks.per_shard, seed=seed, shuffle=shuffle, window=window
        )
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.max_samples = math.ceil(math.prod(one.max_tempo for one in self._wave) * self.crop_samples)
        """Longest span that may have to be read."""
        self.max_pitch = math.prod(one.max_pitch for one in self._wave)
        """Highest pitch that may be drawn."""
        self.batches = crops_per_track * len(tracks) // (world_size * batch_size)
        """Batches of an epoch, the same for every rank."""

    def shards_ahead(self, place: Place) -> tuple[int, ...]:
        """Return the shards that are read for the batch at `place` of all ranks, and in the next window.

        They are numbers in `Tracks.shards`. As long as they are the same, so is the tuple.
        """
        epoch, number = place
        first = number * self._world_size * self.batch_size
        last = first + self._world_size * self.batch_size - 1
        return self._order.shards(epoch, first, last)

    def batch(self, place: Place) -> Batch:
        """Return the batch at `place`."""
        epoch, number = place
        first = (number * self._world_size + self._rank) * self.batch_size
        crops = self._order.tracks(epoch, np.arange(first, first + self.batch_size))
        tracks = crops // self._crops_per_track  # crops of a track stand together before they are shuffled
        rng = RandomNumbers(self._seed, epoch, first, self.batch_size)
        lengths = lengthened(self.tracks.samples[tracks], self.frontend, self.rate)
        moments = [rng.uniform(0, 1) for _ in range(self._views if self._independent else 1)]
        views: list[View] = []
        for _ in range(self._views):
            views.append(self._view(rng, lengths, moments, views))
        shared = [[view] for view in views] if self._independent else [views]
        spans = tuple(_covering(tracks, members) for members in shared)
        cut = [_cut_from(spans, index % len(spans), view) for index, view in enumerate(views)]
        return Batch(place=place, tracks=tracks, spans=spans, views=tuple(cut))

    def _view(self, rng: RandomNumbers, lengths: Array, moments: list[Array], before: list[View]) -> View:
        """Draw the view after those `before`; its crops begin at samples of their tracks, not of spans."""
        mel = self.frontend.mel
        wave = [one.draw(rng, mel) for one in self._wave]
        image = [one.draw(rng, mel) for one in self._image]
        samples, grid_pitch, stretch = self._speed(wave, lengths)
        position = self._position(moments, before, lengths, samples)

        def located(op: WaveOp) -> WaveOp:
            if not isinstance(op, MixWaves):
                return op
            starts = nearest(position[op.partner], lengths[op.partner] - samples)
            return dataclasses.replace(op, starts=starts)

        return View(
            starts=nearest(position, lengths - samples),
            samples=samples,
            wave=tuple(located(op) for op in wave if not isinstance(op, Speed)),
            grid_pitch=grid_pitch,
            stretch=stretch,
            image=merged(image, mel),
            drawn=dict(zip(self._names, [*wave, *image], strict=True)),
        )

    def _speed(self, wave: list[WaveOp], lengths: Array) -> tuple[Array, Array | None, Array | None]:
        """Return the lengths of the crops, and `grid_pitch` and `stretch` of the view."""
        speeds = [op for op in wave if isinstance(op, Speed)]
        if not speeds:
            return np.full(len(lengths), self.crop_samples), None, None
        # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
        partners = [op.partner for op in wave if isinstance(op, MixWaves)]
        available = reduce(np.minimum, [lengths[partner] for partner in partners], lengths)
        rate = reduce(np.multiply, [op.rate for op in speeds], np.ones(len(lengths)))
        rate = np.minimum(rate, available / self.crop_samples)
        pitch = reduce(np.multiply, [np.divide(op.grid_pitch, PITCH_GRID) for op in speeds])
        grid_pitch = np.full(len(lengths), np.rint(PITCH_GRID * pitch), dtype=np.int64)
        samples = np.floor(rate * self.crop_samples + 0.5).astype(np.int64)
        return samples, grid_pitch, rate * PITCH_GRID / grid_pitch

    def _position(self, moments: list[Array], before: list[View], lengths: Array, samples: Array) -> Array:
        """Return where crops of so many `samples` are cut: from 0, the start of a track, to 1, its end.

        Each of the `moments` was drawn from 0 to 1. With a `max_distance`, that of the second view says where
        its crop starts between the nearest and the farthest start that this allows.
        """
        moment = moments[len(before) % len(moments)]
        if self._max_distance is None or not before or len(moments) == 1:
            return moment
        reach, spare = self._max_distance * self.rate, lengths - samples
        first = moments[0] * (lengths - before[0].samples)
        low, high = np.clip(first - reach, 0, spare), np.clip(first + reach, 0, spare)
        return np.asarray((low + (high - low) * moment) / np.maximum(spare, 1))


class TrackPlan:
    """The batches of an evaluation: evenly spaced crops of every track, in the order of the shards, once.

    Rank r of W has an equal part of the tracks. Every crop is a row of its batch. The last batch may be
    smaller.
    """

    max_pitch = 1.0

    def __init__(
        self,
        tracks: Tracks,
        frontend: Frontend,
        *,
        crops: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tracks, self.frontend, self.batch_size, self.crops = tracks, frontend, batch_size, crops
        self.rate = tracks.shard_set.sample_rate
        self.crop_samples = self.max_samples = frontend.crop_samples(self.rate)
        self._first, self._end = (len(tracks) * share // world_size for share in (rank, rank + 1))
        self.batches = -(-(self._end - self._first) // batch_size)

    def shards_ahead(self, place: Place) -> tuple[int, ...]:
        """Return the shards that are read for the batch at `place` of this rank, and the one after them."""
        first = self._first + place[1] * self.batch_size
        shards = self.tracks.shard[first : self._end]
        here = np.unique(shards[: self.batch_size])
        after = shards[np.searchsorted(shards, here[-1], side="right") :][:1]
        return (*here.tolist(), *after.tolist())

    def batch(self, place: Place) -> Batch:
        """Return the batch at `place`; every epoch is the same."""
        _, number = place
        first = self._first + number * self.batch_size
        tracks = np.arange(first, min(first + self.batch_size, self._end))
        rows = np.repeat(tracks, self.crops)
        samples = np.full(len(rows), self.crop_samples)
        spans = Spans(tracks=rows, starts=self.starts(tracks).ravel(), samples=samples)
        view = View(starts=np.zeros(len(rows), dtype=np.int64), samples=samples)
        return Batch(place=place, tracks=tracks, spans=(spans,), views=(view,))

    def starts(self, tracks: Array) -> Array:
        """Return the first sample of each crop of `tracks`, which are numbers, int64 [tracks, crops]."""
        spare = lengthened(self.tracks.samples[tracks], self.frontend, self.rate) - self.crop_samples
        return nearest(even_positions(self.crops), spare[:, None])


def lengthened(samples: Array, frontend: Frontend, rate: int) -> Array:
    """Return the lengths, in samples, that tracks of `samples` have when the short ones are lengthened.

    Those shorter than a crop are repeated as often as makes a crop, or followed by silence until they do.
    """
    crop = frontend.crop_samples(rate)
    if frontend.short_tracks == "pad":
        return np.maximum(samples, crop)
    return np.asarray(samples * np.maximum(-(-crop // np.maximum(samples, 1)), 1))


def even_positions(crops: int) -> Array:
    """Return where so many crops of a track are cut, evenly spaced from its start, 0, to its end, 1."""
    return np.array([0.5]) if crops == 1 else np.linspace(0, 1, crops)


def nearest(positions: Array, spare: Array) -> Array:
    """Return the first samples of crops that leave `spare` samples of their tracks, int64.

    At one position, the longer of two crops contains the shorter.
    """
    return np.floor(positions * spare + 0.5).astype(np.int64)


def _covering(tracks: Array, views: Sequence[View]) -> Spans:
    """Return the shortest spans that hold all crops of `views`, and those that are mixed into others."""
    starts, ends = views[0].starts.copy(), views[0].starts + views[0].samples
    for view in views:
        crops = [(np.arange(len(tracks)), view.starts)]
        crops += [(op.partner, op.starts) for op in view.wave if isinstance(op, MixWaves)]
        for rows, first in crops:
            np.minimum.at(starts, rows, first)
            np.maximum.at(ends, rows, first + view.samples)
    return Spans(tracks=tracks, starts=starts, samples=ends - starts)


def _cut_from(spans: Sequence[Spans], index: int, view: View) -> View:
    """Return `view` with crops that begin at samples of the spans at `index`."""
    first = spans[index].starts
    wave = tuple(
        dataclasses.replace(op, starts=op.starts - first[op.partner]) if isinstance(op, MixWaves) else op
        for op in view.wave
    )
    return dataclasses.replace(view, span_index=index, starts=view.starts - first, wave=wave)


def _numbered(names: Iterable[str]) -> list[str]:
    """Return `names` with a number behind each that occurs again: mask, mask_2."""
    times: Counter[str] = Counter()
    found = []
    for name in names:
        times[name] += 1
        found.append(f"{name}_{times[name]}" if times[name] > 1 else name)
    return found
