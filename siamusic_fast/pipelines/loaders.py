"""The three loaders: two views for pre-training, labelled crops for classifiers, whole tracks for evaluation.

`base_loader.Loader` documents what they share: arguments, epochs, resuming, closing and errors.
"""

from dataclasses import dataclass

from torch import Tensor

from siamusic_fast.config import CROPS
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.base_loader import Loader
from siamusic_fast.pipelines.checks import check_crops
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.recipes import Recipe, check_unmixed, to_recipe
from siamusic_fast.pipelines.tracks import Tracks, with_label_fraction
from siamusic_fast.shards.manifest import ShardSet, find_shards

MAX_CROPS = 128
"""Crops of a track in evaluation unless more are asked for: 640 s of the paper's features, evenly spaced."""


@dataclass(eq=False, repr=False, kw_only=True)
class TwoViewLoader(Loader[tuple[Tensor, Tensor]]):
    """Two augmented views of every track, for pre-training.

    Yields (view_1, view_2), each float32 or bfloat16 [batch_size, 1, n_mels, frames]:

        with TwoViewLoader("fma_medium", aug="image", batch_size=256, device="cuda") as loader:
            for view_1, view_2 in loader:
                ...

    An epoch is a new random order of all tracks. All batches are full: up to batch_size - 1 tracks per
    process sit out an epoch, others in each. `Loader` documents the other arguments, resuming and errors.

    - `aug`: augmentations of both views, as text that `parse_recipe` reads, such as "image" or
      "cutmix(p=0.3),hflip", or as a tuple of augmentations.
    - `crops`: "same" if both views show the same seconds of a track, "independent" if each has its own.
    - `max_distance`: how far apart the starts of independent crops may be, in seconds. None: any distance.
      With the same crops it means nothing.
    """

    aug: str | Recipe = "image"
    crops: str = CROPS[0]
    max_distance: float | None = None

    def _planned(self) -> Plan:
        check_crops(self.crops, self.max_distance)
        features, tracks = self._opened()
        available = _tracks_per_process(tracks, self.world_size)
        plan = Plan(
            tracks,
            features,
            recipe=to_recipe(self.aug, features.mel),
            views=2,
            independent=self.crops == "independent",
            max_distance=self.max_distance,
            batch_size=self.batch_size,
            window=self.window,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        if self.batch_size > available:
            shared = f" that each of {self.world_size} processes gets" if self.world_size > 1 else ""
            fitting = f"{available} or less" if available > 1 else "1"
            raise ConfigError(
                f"batch_size = {self.batch_size} does not fit the {available} tracks{shared}: use "
                f"{fitting} (on the command line --batch-size {available})."
            )
        return plan

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(views[0]), self._mels(views[1])


@dataclass(eq=False, repr=False, kw_only=True)
class LabelledLoader(Loader[tuple[Tensor, Tensor]]):
    """Random crops of every labelled track, for training a classifier.

    Yields (mels, labels): float32 or bfloat16 [batch_size, 1, n_mels, frames], and the classes, int64
    [batch_size], or the tags, float32 [batch_size, tags] with 1 for each that the track has:

        with LabelledLoader("fma_small", aug="mask,hflip", label_fraction=0.1) as loader:
            for mels, labels in loader:
                ...

    An epoch is a new random order of the crops, in full batches. If there are fewer crops than
    `batch_size`, they are one batch. `Loader` documents the other arguments, resuming and errors.

    - `aug`: augmentations of the crops, as those of `TwoViewLoader`. Raises `ConfigError` for those that mix
      tracks, because the label would no longer be that of the crop.
    - `target`: "class" or "tags"; tracks without are left out. None: the class if there are two of them,
      else the tags.
    - `label_fraction`: the fraction of the tracks of each class that is read, or of all tracks with tags;
      `seed` decides which.
    - `crops_per_track`: the number of random crops of each track in an epoch.
    """

    aug: str | Recipe = "none"
    target: str | None = None
    label_fraction: float = 1.0
    crops_per_track: int = 1

    def _planned(self) -> Plan:
        check_unmixed(self.aug)
        self.data = self.data if isinstance(self.data, ShardSet) else find_shards(self.data)
        self.target = self.target or self.data.target
        features, tracks = self._opened(target=self.target)
        tracks = with_label_fraction(tracks, self.label_fraction, self.seed, self.target)
        return Plan(
            tracks,
            features,
            recipe=to_recipe(self.aug, features.mel),
            batch_size=min(
                self.batch_size, _tracks_per_process(tracks, self.world_size, self.crops_per_track)
            ),
            crops_per_track=self.crops_per_track,
            window=self.window,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(views[0]), self._labels(batch, self.target)


@dataclass(eq=False, repr=False, kw_only=True)
class TrackLoader(Loader[tuple[Tensor, Tensor]]):
    """All of every track, each track once and in the order of the shards, for evaluation.

    Yields (mels, labels): float32 or bfloat16 [tracks, crops, 1, n_mels, frames] and int64 [tracks]:

        with TrackLoader("fma_small", splits=["test"], batch_size=8) as loader:
            for mels, labels in loader:
                ...

    `tracks` is `batch_size`, or less in the last batch. The label of a track without a class is -1. The crops
    of a track are evenly spaced from its first to its last second. As nothing is random, `seed` and `window`
    change nothing. `Loader` documents the other arguments, resuming and errors.

    - `crops`: crops of each track. None: as many as cover the longest track, up to 128.
    - `crops_per_batch`: upper limit of the crops in a batch, which then has fewer tracks. None: no limit.
    - `target`: "class" leaves out tracks without a class. "tags" leaves out those without tags, and the
      labels are the tags, float32 [tracks, tags]. None: all tracks, with their classes.
    """

    crops: int | None = None
    crops_per_batch: int | None = None
    target: str | None = None

    _endless = False

    def _planned(self) -> TrackPlan:
        features, tracks = self._opened(labels=True, target=self.target)
        _tracks_per_process(tracks, self.world_size)
        self.crops = covering_crops(tracks, features, self.crops)
        max_tracks = self.batch_size
        if self.crops_per_batch is not None:
            max_tracks = max(1, self.crops_per_batch // self.crops)
        return TrackPlan(
            tracks,
            features,
            crops=self.crops,
            batch_size=min(self.batch_size, max_tracks, len(tracks)),
            rank=self.rank,
            world_size=self.world_size,
        )

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        mels = self._mels(views[0])
        return mels.view(len(batch.tracks), -1, *mels.shape[1:]), self._labels(batch, self.target)


def covering_crops(tracks: Tracks, frontend: Frontend, crops: int | None) -> int:
    """Return how many crops to take of each track; if `crops` is None, as cover the longest, up to 128."""
    if crops is not None and crops < 1:
        raise ConfigError(f"crops = {crops} must be at least 1.")
    samples = frontend.crop_samples(tracks.shard_set.sample_rate)
    return crops or min(-(-int(tracks.samples.max()) // samples), MAX_CROPS)


def _tracks_per_process(tracks: Tracks, world_size: int, crops: int = 1) -> int:
    """Return how many tracks, or `crops` of each, every process gets; raise `ConfigError` if that is none."""
    if crops * len(tracks) < world_size:
        raise ConfigError(
            f"{tracks.shard_set.place} has {len(tracks)} such tracks, too few for {world_size} "
            f"processes: use {len(tracks)} (on the command line --gpus or --procs)."
        )
    return crops * len(tracks) // world_size
