"""Loaders: iterate over shards and get batches of spectrograms on the right device.

    loader = TwoViewLoader("fma_medium", LoaderConfig(batch_size=256, device="cuda"), recipe="image")
    for view_1, view_2 in loader:
        ...

Iterating once is one epoch; leaving it early and iterating again goes on where it stopped. While a batch is
being used, the next ones are made in the background, by threads alone.
"""

import importlib.util
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from siamusic_fast.config import CROPS, MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.draws import Place
from siamusic_fast.pipelines.estimate import check_length, estimate_frontend
from siamusic_fast.pipelines.loader_config import LoaderConfig, checked_device
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Engine, Prefetcher
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.recipes import Recipe, check_unmixed, to_recipe
from siamusic_fast.pipelines.torch.engine import TorchEngine
from siamusic_fast.pipelines.tracks import Tracks, open_tracks, with_share
from siamusic_fast.processes.pool import share_of_cores
from siamusic_fast.shards.manifest import ShardSet, find_shards

__all__ = ["LabelledLoader", "Loader", "LoaderConfig", "TrackLoader", "TwoViewLoader"]

T = TypeVar("T")

MAX_CROPS = 128
"""Crops of a track in evaluation unless more are asked for: 640 s of the paper's features, evenly spaced."""
_MAX_READERS = 4
"""Threads that read wav shards: one reads about 30,000 crops a second."""
_DEPTH = 4
"""Batches whose samples are in memory: two that an engine computes, two that are being read."""


class Loader(ABC, Generic[T]):
    """What all loaders share: a plan, a reader, an engine, and a place in the epoch.

    `data` is a shard set, its folder, or its name. Raises `ConfigError` if crops or batches do not fit the
    tracks, `DataError` if the shards are damaged.
    """

    _endless = True
    """Whether the next epoch is begun while the last batches of one are used."""

    def __init__(self, config: LoaderConfig, plan: Plan | TrackPlan, *, check_labels: bool) -> None:
        self.config, self.plan, self.frontend = config, plan, plan.frontend
        self.device = checked_device(config)
        self._reader = Reader(plan.tracks, plan.frontend, check_labels=check_labels)
        self._engine: Engine | None = None
        self._stream: Iterator[T] | None = None
        self._epoch = self._given = 0
        self._closed = False

    @property
    def batch_size(self) -> int:
        """Tracks per batch of this process."""
        return self.plan.batch_size

    def __len__(self) -> int:
        """Batches per epoch: as many on every rank in training, where each is full."""
        return self.plan.batches

    def __iter__(self) -> Iterator[T]:
        if self._given == len(self):
            self._epoch, self._given = self._epoch + 1, 0
        while self._given < len(self):
            batch = self._next()
            self._given += 1
            if self._given == len(self) and not self._endless:
                next(self._stream or iter(()), None)
                self._stream = None
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the place: the epoch and how many of its batches were given out, both from 0."""
        return {"epoch": self._epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state that `state_dict` returned, of a loader with the same arguments.

        Raises `ConfigError` for a place that no epoch of this loader has.
        """
        epoch, batch = state.get("epoch", -1), state.get("batch", -1)
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ConfigError(
                f"state = {state!r} is no place of this loader, whose epochs have {len(self)} batches: give "
                f"it the arguments of the loader that the state is from."
            )
        self._stop()
        self._epoch, self._given = epoch, batch

    def close(self) -> None:
        """Stop the threads and free the memory; the loader is of no use afterwards."""
        self._stop()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _output(self, batch: Batch, views: list[Tensor]) -> T:
        """Return what is given out of the views of `batch`, which are on the device."""

    def _next(self) -> T:
        if self._closed:
            raise ValueError("This loader is closed.")
        if self._stream is None:
            self._stream = self._produced()
        try:
            return next(self._stream)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        """Forget the batches that were made ahead."""
        stream, self._stream, self._engine = self._stream, None, None
        if stream is not None:
            stream.close()  # type: ignore[attr-defined]
        self._reader.close()

    def _produced(self) -> Iterator[T]:
        """Yield the batches from the present place on."""
        threads = self.config.threads or share_of_cores()
        if self._engine is None:
            self._engine = _engine(self.plan, self.config.backend, self.device, threads)
        only_reads = self.config.backend == "dali" or self.device.type != "cpu"
        of_wav = self.plan.tracks.shard_set.codec == "wav"
        prefetcher = Prefetcher(
            self.plan,
            self._reader,
            self._engine,
            self._places(),
            threads=min(threads, _MAX_READERS) if only_reads and of_wav else threads,
            depth=_DEPTH,
            pinned=self.device.type != "cpu",
        )
        try:
            for computed in self._engine.run(prefetcher):
                prefetcher.release(computed)
                yield self._output(computed.ready.batch, computed.views)
        finally:
            prefetcher.close()

    def _places(self) -> Iterator[Place]:
        """Yield the places from the present one on: without an end, so that threads need not wait at one."""
        first, given = self._epoch, self._given
        for epoch in itertools.count(first) if self._endless else [first]:
            for batch in range(given if epoch == first else 0, len(self)):
                yield epoch, batch

    def _mels(self, images: Tensor) -> Tensor:
        """Return spectrograms in the precision asked for: without a copy if that is float32."""
        return images.to(self.config.dtype)


class TwoViewLoader(Loader[tuple[Tensor, Tensor]]):
    """Two augmented views of every track, for pre-training.

    Yields (view_1, view_2), each float32 or bfloat16 [batch_size, 1, n_mels, frames]. All batches are full:
    up to batch_size - 1 tracks per rank sit out an epoch, others in each, as the order changes.
    """

    def __init__(
        self,
        data: ShardSet | Path | str,
        config: LoaderConfig | None = None,
        *,
        recipe: str | Recipe = "image",
        crops: str = CROPS[0],
        max_distance: float | None = None,
    ) -> None:
        """Apply `recipe`: text that `parse_recipe` reads, or a tuple of augmentations.

        With `crops` "same" both views show the same seconds, with "independent" each its own, which start at
        most `max_distance` seconds apart if that is given.
        """
        config = config or LoaderConfig()
        check_crops(crops, max_distance)
        frontend, tracks = _opened(data, config)
        plan = Plan(
            tracks,
            frontend,
            recipe=to_recipe(recipe, frontend.mel),
            views=2,
            independent=crops == "independent",
            max_distance=max_distance,
            batch_size=config.batch_size,
            window=config.window,
            seed=config.seed,
            rank=config.rank,
            world_size=config.world_size,
        )
        fewest = _each(tracks, config)
        if config.batch_size > fewest:
            shared = f" that each of {config.world_size} processes gets" if config.world_size > 1 else ""
            raise ConfigError(
                f"batch_size = {config.batch_size} does not fit the {fewest} tracks{shared}: use {fewest} or "
                f"less (on the command line --batch-size {fewest})."
            )
        super().__init__(config, plan, check_labels=False)

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(views[0]), self._mels(views[1])


class LabelledLoader(Loader[tuple[Tensor, Tensor]]):
    """A random crop of every labelled track, for training a classifier.

    Yields (mels, labels): float32 or bfloat16 [batch_size, 1, n_mels, frames] and int64 [batch_size]. All
    batches are full; if there are fewer tracks than `batch_size`, they are one batch.
    """

    def __init__(
        self,
        data: ShardSet | Path | str,
        config: LoaderConfig | None = None,
        *,
        recipe: str | Recipe = "none",
        labels: float = 1.0,
    ) -> None:
        """Augment with `recipe`, and read the share `labels` of the tracks of each class only.

        Raises `ConfigError` if `recipe` mixes tracks: the label would no longer be that of the crop.
        """
        config = config or LoaderConfig()
        check_unmixed(recipe)
        frontend, tracks = _opened(data, config, labelled_only=True, labels=True)
        tracks = with_share(tracks, labels, config.seed)
        plan = Plan(
            tracks,
            frontend,
            recipe=to_recipe(recipe, frontend.mel),
            batch_size=min(config.batch_size, _each(tracks, config)),
            window=config.window,
            seed=config.seed,
            rank=config.rank,
            world_size=config.world_size,
        )
        super().__init__(config, plan, check_labels=True)

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(views[0]), _labels(self.plan.tracks, batch, self.device)


class TrackLoader(Loader[tuple[Tensor, Tensor]]):
    """All of every track, each track exactly once and in the order of the shards, for evaluation.

    Yields (mels, labels): float32 or bfloat16 [tracks, crops, 1, n_mels, frames] and int64 [tracks], where
    tracks is `batch_size`, or less in the last batch, and the label of a track without a class is -1. The
    crops are evenly spaced from the first to the last second.
    """

    _endless = False

    def __init__(
        self,
        data: ShardSet | Path | str,
        config: LoaderConfig | None = None,
        *,
        crops: int | None = None,
        crops_per_batch: int | None = None,
        labelled_only: bool = False,
    ) -> None:
        """Take `crops` of each track; by default as many as cover the longest, up to 128.

        With `crops_per_batch`, a batch has fewer tracks if they would have more crops than that together.
        """
        config = config or LoaderConfig()
        frontend, tracks = _opened(data, config, labelled_only=labelled_only, labels=True)
        _each(tracks, config)
        self.crops = covering_crops(tracks, frontend, crops)
        """Crops of each track."""
        most = max(1, (crops_per_batch or self.crops * config.batch_size) // self.crops)
        plan = TrackPlan(
            tracks,
            frontend,
            crops=self.crops,
            batch_size=min(config.batch_size, most, len(tracks)),
            rank=config.rank,
            world_size=config.world_size,
        )
        super().__init__(config, plan, check_labels=True)

    def _output(self, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        mels = self._mels(views[0])
        return mels.view(len(batch.tracks), self.crops, *mels.shape[1:]), _labels(
            self.plan.tracks, batch, self.device
        )


def covering_crops(tracks: Tracks, frontend: Frontend, asked: int | None) -> int:
    """Return how many crops to take of a track: `asked`, or as cover the longest, up to `MAX_CROPS`."""
    if asked is not None and asked < 1:
        raise ConfigError(f"crops = {asked} must be at least 1.")
    span = frontend.span(tracks.shard_set.sample_rate)
    return asked or min(-(-int(tracks.samples.max()) // span), MAX_CROPS)


def _opened(
    data: ShardSet | Path | str, config: LoaderConfig, *, labelled_only: bool = False, labels: bool = False
) -> tuple[Frontend, Tracks]:
    """Return the features and the tracks of a loader; raise `ConfigError` if a crop is longer than all."""
    if config.backend == "dali" and not _has_dali():
        raise ConfigError(
            "backend = 'dali', and DALI is not installed: `pip install nvidia-dali-cuda120`, or use "
            "backend='torch' (on the command line --backend torch)."
        )
    shard_set = data if isinstance(data, ShardSet) else find_shards(data)
    frontend = config.frontend or estimate_frontend(shard_set, MelConfig(sample_rate=shard_set.sample_rate))
    tracks = open_tracks(shard_set, config.splits, labelled_only=labelled_only, labels=labels)
    check_length(tracks, frontend.mel)
    return frontend, tracks


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _engine(plan: Plan | TrackPlan, backend: str, device: torch.device, threads: int) -> Engine:
    if backend == "torch":
        return TorchEngine(plan, device)
    from siamusic_fast.pipelines.dali.engine import DaliEngine  # only here: DALI may not be installed

    return DaliEngine(plan, device, threads)


def _each(tracks: Tracks, config: LoaderConfig) -> int:
    """Return how many tracks every process gets at least; raise `ConfigError` if that is none."""
    if len(tracks) < config.world_size:
        raise ConfigError(
            f"{tracks.shard_set.folder} has {len(tracks)} such tracks, too few for {config.world_size} "
            f"processes: use {len(tracks)}."
        )
    return len(tracks) // config.world_size


def _labels(tracks: Tracks, batch: Batch, device: torch.device) -> Tensor:
    assert tracks.labels is not None
    return torch.from_numpy(tracks.labels[batch.tracks]).to(device, non_blocking=True)


def check_crops(crops: str, max_distance: float | None) -> None:
    """Raise `ConfigError` unless the two views of a track can be taken from it in this way."""
    if crops not in CROPS:
        known = f"{' or '.join(CROPS)} (on the command line --crops)"
        raise ConfigError(f"crops = {crops!r} is unknown: choose {known}.")
    if max_distance is not None and not (max_distance >= 0 and math.isfinite(max_distance)):
        raise ConfigError(
            f"max_distance = {max_distance:g} s must be a number that is not negative (on the command line "
            f"--max-distance)."
        )
    if max_distance is not None and crops != "independent":
        raise ConfigError(
            f"max_distance = {max_distance:g} s is for crops = 'independent' only (on the command line "
            f"--crops independent)."
        )
