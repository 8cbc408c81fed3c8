"""What every batch of a loader is: which tracks, which seconds of them, and everything that was drawn.

All that is random is decided here, in numpy, as a function of (seed, epoch, place in the epoch) alone. The
reader fetches what the plan names, and an engine computes the views; neither draws anything.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.augmentations import ImageAugmentation, WaveAugmentation
from siamusic_fast.pipelines.changes import (
    PITCH_GRID,
    ImageChange,
    MixWaves,
    Speed,
    WaveChange,
    merged,
)
from siamusic_fast.pipelines.draws import Array, Draws, Order, Place
from siamusic_fast.pipelines.recipes import Recipe, step_name
from siamusic_fast.pipelines.tracks import Tracks


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Samples to be read, of each row of a batch: one span that serves every crop taken from it."""

    tracks: Array
    """int64 [rows]."""
    starts: Array
    """Where each span begins in its track, lengthened if it is short, in samples; int64 [rows]."""
    samples: Array
    """Length of each span, int64 [rows]."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The crops of other tracks that are mixed into those of a view."""

    partner: Array
    """Row of the batch, int64 [rows]."""
    starts: Array
    """Where the crop begins in the span of the partner, int64 [rows]; it is as long as that of the host."""
    weight: Array
    """How much of it there is, [rows], 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of every row of a batch: a crop, and what is done with it.

    span of a track      |-----------------------------|
    crop of view 1          |=======|
    crop of view 2          |==============|
    """

    span: int
    """Which of the batch's `spans` the crops are taken from."""
    starts: Array
    """Where each crop begins in its span, int64 [rows]."""
    samples: Array
    """Length of each crop, at the rate of the shards; int64 [rows]."""
    wave: tuple[WaveChange | Mix, ...]
    """What is done before the spectrogram, besides `Speed`."""
    grid_pitch: Array | None
    """Pitch in units of 1 / `PITCH_GRID`, int64 [rows]; None: neither tempo nor pitch ever changes."""
    step: Array | None
    """Distance of the frames that are shown, in frames of the spectrogram, float64 [rows]: tempo / pitch."""
    image: tuple[ImageChange, ...]
    """What is done with the spectrogram."""
    drawn: dict[str, WaveChange | ImageChange]
    """What was drawn, by the name of the step: for people to look at."""

    @property
    def plain(self) -> bool:
        """Whether the spectrogram is of the span as it is, as in all plain views of the same spans."""
        return not self.wave and self.step is None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """All there is to know of a batch before any audio is read."""

    place: Place
    tracks: Array
    """Numbers in `Plan.tracks`, int64 [tracks]."""
    spans: tuple[Spans, ...]
    views: tuple[View, ...]


class Plan:
    """The batches of a loader, each a pure function of its place.

    Rank r of W takes every batch's places r * batch_size to (r + 1) * batch_size - 1 of the W * batch_size
    that all ranks take together. Whole blocks of `draws.BLOCK` places draw by themselves, so what a
    run sees does not depend on how a global batch of whole blocks is shared: 1 x 128, 2 x 64 and 4 x 32 are
    the same. Of other sizes, it depends on seed, batch size and number of ranks, and on nothing else.
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
        window: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tracks, self.frontend, self.batch_size = tracks, frontend, batch_size
        self.rate = tracks.shard_set.sample_rate
        self.span = frontend.span(self.rate)
        self._views, self._independent, self._max_distance = views, independent, max_distance
        self._wave = [step for step in recipe if isinstance(step, WaveAugmentation)]
        self._image = [step for step in recipe if isinstance(step, ImageAugmentation)]
        self._order = Order(tracks.per_shard, seed=seed, shuffle=shuffle, window=window)
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.batches = len(tracks) // (world_size * batch_size)
        """Batches of an epoch, the same for every rank."""

    @property
    def max_samples(self) -> int:
        """Longest span that may have to be read."""
        return math.ceil(self._max_rate * self.span)

    @property
    def max_pitch(self) -> float:
        """Highest pitch that may be drawn."""
        return math.prod(step.max_pitch_drawn for step in self._wave)

    def batch(self, place: Place) -> Batch:
        """Return the batch at `place`."""
        epoch, number = place
        first = (number * self._world_size + self._rank) * self.batch_size
        tracks = self._order.tracks(epoch, np.arange(first, first + self.batch_size))
        draws = Draws(self._seed, epoch, first, self.batch_size)
        lengths = lengthened(self.tracks.samples[tracks], self.frontend, self.rate)
        moments = [draws.uniform(0, 1) for _ in range(2 if self._independent else 1)]
        drafts = [self._drawn(draws, lengths) for _ in range(self._views)]
        positions = self._positions(moments, drafts, lengths)
        shared = [drafts] if len(positions) == 1 else [[draft] for draft in drafts]
        spans = tuple(
            _covering(tracks, members, position, lengths)
            for members, position in zip(shared, positions, strict=True)
        )
        views = [
            draft.within(spans, number % len(spans), positions[number % len(positions)])
            for number, draft in enumerate(drafts)
        ]
        return Batch(place=place, tracks=tracks, spans=spans, views=tuple(views))

    @property
    def _max_rate(self) -> float:
        return math.prod(step.max_rate_drawn for step in self._wave)

    def _positions(self, moments: list[Array], drafts: Sequence["_Draft"], lengths: Array) -> list[Array]:
        """Return where the crops lie, from 0, the start of a track, to 1, its end; one for each span.

        `moments` were drawn from 0 to 1. With a `max_distance`, the second says where between the nearest and
        the farthest start that this allows.
        """
        if self._max_distance is None or len(moments) == 1:
            return moments
        reach = self._max_distance * self.rate
        first = moments[0] * (lengths - drafts[0].samples)
        spare = lengths - drafts[1].samples
        low, high = np.clip(first - reach, 0, spare), np.clip(first + reach, 0, spare)
        return [moments[0], (low + (high - low) * moments[1]) / np.maximum(spare, 1)]

    def _drawn(self, draws: Draws, lengths: Array) -> "_Draft":
        mel = self.frontend.mel
        wave = [step.draw(draws, mel) for step in self._wave]
        image = [step.draw(draws, mel) for step in self._image]
        names = _names([*self._wave, *self._image])
        speeds = [change for change in wave if isinstance(change, Speed)]
        samples, grid_pitch, step = np.full(draws.count, self.span), None, None
        if speeds:
            # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
            partners = [change.partner for change in wave if isinstance(change, MixWaves)]
            available = reduce(np.minimum, [lengths[partner] for partner in partners], lengths)
            rate = reduce(np.multiply, [speed.rate for speed in speeds], np.ones(draws.count))
            rate = np.minimum(rate, available / self.span)
            pitch = reduce(np.multiply, [np.divide(speed.grid_pitch, PITCH_GRID) for speed in speeds])
            samples = np.floor(rate * self.span + 0.5).astype(np.int64)
            grid_pitch = np.full(draws.count, np.rint(PITCH_GRID * pitch), dtype=np.int64)
            step = rate * PITCH_GRID / grid_pitch
        return _Draft(
            lengths=lengths,
            samples=samples,
            wave=[change for change in wave if not isinstance(change, Speed)],
            grid_pitch=grid_pitch,
            step=step,
            image=merged(image, mel.n_mels, mel.frames),
            drawn=dict(zip(names, [*wave, *image], strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A view of which it is not yet known what is read for it."""

    lengths: Array
    samples: Array
    wave: Sequence[WaveChange]
    grid_pitch: Array | None
    step: Array | None
    image: tuple[ImageChange, ...]
    drawn: dict[str, WaveChange | ImageChange]

    @property
    def needed(self) -> Array:
        """Samples that this view takes of each row, for the row itself and for those it is mixed into."""
        needed = self.samples.copy()
        for change in self.wave:
            if isinstance(change, MixWaves):
                np.maximum.at(needed, change.partner, self.samples)
        return needed

    def within(self, spans: Sequence[Spans], span: int, positions: Array) -> View:
        """Return the view, its crops at `positions`, cut from one of `spans`."""
        read = spans[span].starts

        def mix(change: MixWaves) -> Mix:
            partner = change.partner
            starts = nearest(positions[partner], self.lengths[partner] - self.samples) - read[partner]
            return Mix(partner=partner, starts=starts, weight=change.weight)

        return View(
            span=span,
            starts=nearest(positions, self.lengths - self.samples) - read,
            samples=self.samples,
            wave=tuple(mix(change) if isinstance(change, MixWaves) else change for change in self.wave),
            grid_pitch=self.grid_pitch,
            step=self.step,
            image=self.image,
            drawn=self.drawn,
        )


class TrackPlan:
    """The batches of an evaluation: evenly spaced crops of every track, in the order of the shards, once.

    Rank r of W has an equal part of the tracks. Every crop is a row of its batch; the last batch may be
    smaller.
    """

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
        self.span = self.max_samples = frontend.span(self.rate)
        self.max_pitch = 1.0
        self._first, self._end = (len(tracks) * part // world_size for part in (rank, rank + 1))
        self.batches = -(-(self._end - self._first) // batch_size)

    def batch(self, place: Place) -> Batch:
        """Return the batch at `place`; every epoch is the same."""
        _, number = place
        first = self._first + number * self.batch_size
        tracks = np.arange(first, min(first + self.batch_size, self._end))
        rows = np.repeat(tracks, self.crops)
        spare = lengthened(self.tracks.samples[rows], self.frontend, self.rate) - self.max_samples
        positions = [0.5] if self.crops == 1 else np.linspace(0, 1, self.crops)
        span = np.full(len(rows), self.max_samples)
        spans = Spans(tracks=rows, starts=nearest(np.tile(positions, len(tracks)), spare), samples=span)
        view = View(
            span=0,
            starts=np.zeros(len(rows), dtype=np.int64),
            samples=span,
            wave=(),
            grid_pitch=None,
            step=None,
            image=(),
            drawn={},
        )
        return Batch(place=place, tracks=tracks, spans=(spans,), views=(view,))


def lengthened(samples: Array, frontend: Frontend, rate: int) -> Array:
    """Return the lengths, in samples, that tracks of `samples` have when the short ones are lengthened.

    Those shorter than a crop are repeated as often as makes a crop, or followed by silence until they do.
    """
    span = frontend.span(rate)
    if frontend.short_tracks == "pad":
        return np.maximum(samples, span)
    return np.asarray(samples * np.maximum(-(-span // np.maximum(samples, 1)), 1))


def nearest(positions: Array, spare: Array) -> Array:
    """Return where crops begin that leave `spare` samples of their tracks, int64.

    At one position, the longer of two crops contains the shorter.
    """
    return np.floor(positions * spare + 0.5).astype(np.int64)


def _covering(tracks: Array, drafts: Sequence[_Draft], positions: Array, lengths: Array) -> Spans:
    """Return the shortest spans at `positions` that hold all that `drafts` take of them."""
    samples = reduce(np.maximum, [draft.needed for draft in drafts])
    return Spans(tracks=tracks, starts=nearest(positions, lengths - samples), samples=samples)


def _names(steps: Sequence[WaveAugmentation | ImageAugmentation]) -> list[str]:
    """Return the name of every step; one that occurs again gets a number."""
    names: list[str] = []
    times: Counter[str] = Counter()
    for step in steps:
        name = step_name(step)
        times[name] += 1
        names.append(f"{name}_{times[name]}" if times[name] > 1 else name)
    return names
