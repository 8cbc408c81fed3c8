"""Loaders: iterate over shards and get batches of spectrograms on the right device.

    loader = TwoViewLoader("data/shards/fma_medium", recipe="image", batch_size=256, device="cuda")
    for view_1, view_2 in loader:
        ...

Iterating once is one epoch; leaving it early and iterating again goes on where it stopped. While a batch is
being used, the next ones are made in the background.
"""

import base64
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.recipes import Recipe, parse_recipe
from siamusic_fast.pipelines.source import Source, check_crops
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.shards.manifest import ShardSet, find_shards
from siamusic_fast.shards.pool import cores

Batch = TypeVar("Batch")

MOST_CROPS = 32
"""Crops of a track in evaluation unless more are asked for: 160 s of the paper's features, evenly spaced."""
_PREFETCH = 2
"""Batches that DALI makes ahead."""


class LoaderOptions(TypedDict, total=False):
    """Keyword arguments that all loaders take."""

    splits: Sequence[str]
    """Of the shard set; by default training."""
    mel: MelConfig
    """Features; by default the paper's, at the sample rate of the shards."""
    normalisation: Normalisation
    """Constants; by default estimated once and kept beside the shards."""
    batch_size: int
    """Of this process; 64 by default."""
    device: torch.device | str
    """Where the features are computed and the batches are: "cpu", the default, or "cuda:0"."""
    threads: int
    """CPU threads; by default this process's share of the cores."""
    seed: int
    """Of order, crops and augmentations; 0 by default."""
    rank: int
    """Which process this is, from 0; each gets tracks of its own."""
    world_size: int
    """How many processes there are; 1 by default."""


class _Loader(ABC, Generic[Batch]):
    """What all loaders share: the pipeline, its epochs and its state.

    `data` is a shard set, its folder, or its name; for the other arguments see `LoaderOptions`. Raises
    `ConfigError` if the crops do not fit the shards, or the batches do not fit the number of tracks.

    A pipeline's epoch ends on a batch of its own, padded with repeated tracks. `_batches` of it are given
    out, the rest is drawn and dropped.
    """

    _shuffle = True
    _labelled_only = False

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        splits: Sequence[str] = ("training",),
        mel: MelConfig | None = None,
        normalisation: Normalisation | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        shard_set = data if isinstance(data, ShardSet) else find_shards(data)
        self.mel = mel or MelConfig(sample_rate=shard_set.sample_rate)
        self.device = _with_index(torch.device(device))
        shards = shard_set.shards(splits, labelled_only=self._labelled_only)
        self._source = Source(
            shard_set=shard_set,
            shards=shards,
            shuffle=self._shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        check_crops(self._source, self.mel)
        self.batch_size = self._fitting(batch_size)
        self.normalisation = normalisation or estimate(shard_set, self.mel)
        self._features = graph.Features(
            self.mel, self.normalisation, "gpu" if self.device.type == "cuda" else "cpu"
        )
        self._threads = threads or _share_of_cores()
        self._position = 0
        self._pipeline: Pipeline | None = self._build(checkpoint=None)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        while self._position < self._batches:
            outputs = self._run()
            self._position += 1
            yield self._batch([self._tensor(output) for output in outputs])
        for _ in range(self._padded_batches - self._batches):
            self._run()
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch and all random states, as plain values."""
        state = self._open_pipeline().checkpoint()
        return {"position": self._position, "pipeline": base64.b64encode(state).decode("ascii")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned, of a loader with the same arguments."""
        self._position = state["position"]
        self._pipeline = self._build(checkpoint=base64.b64decode(state["pipeline"]))

    def close(self) -> None:
        """Stop the background threads and free the memory; the loader is of no use afterwards."""
        self._pipeline = None

    def __enter__(self) -> "_Loader[Batch]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _graph(self, **options: Any) -> Pipeline:
        """Return the pipeline, not yet built."""

    @abstractmethod
    def _batch(self, outputs: list[Tensor]) -> Batch:
        """Return the outputs of the pipeline as a batch."""

    def _fitting(self, batch_size: int) -> int:
        """Return `batch_size`, or raise `ConfigError` if the tracks do not fill a batch."""
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} must be at least 1.")
        processes = self._source.world_size
        fewest = self._source.tracks // processes
        if batch_size > fewest:
            shared = f" that each of {processes} processes gets" if processes > 1 else ""
            raise ConfigError(
                f"A batch of {batch_size} does not fit the {fewest} tracks{shared}: "
                f"use --batch-size {fewest} or less."
            )
        return batch_size

    @property
    def _batches(self) -> int:
        return self._source.tracks // self._source.world_size // self.batch_size

    @property
    def _padded_batches(self) -> int:
        return math.ceil(math.ceil(self._source.tracks / self._source.world_size) / self.batch_size)

    def _build(self, checkpoint: bytes | None) -> Pipeline:
        random_state = np.random.SeedSequence([self._source.seed, self._source.rank])
        pipeline = self._graph(
            batch_size=self.batch_size,
            num_threads=self._threads,
            device_id=self.device.index,
            seed=int(random_state.generate_state(1)[0]),
            prefetch_queue_depth=_PREFETCH,
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
        pipeline.build()
        return pipeline

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise ValueError("This loader is closed.")
        return self._pipeline

    def _run(self) -> Any:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        return self._open_pipeline().run(stream)

    def _tensor(self, output: Any) -> Tensor:
        """Return a batch as a tensor over DALI's own memory, which lives as long as the tensor."""
        return from_dlpack(output.as_tensor())


class TwoViewLoader(_Loader[tuple[Tensor, Tensor]]):
    """Two augmented views of every track, for pre-training.

    Yields (view_1, view_2), each float32 [batch_size, 1, n_mels, frames]. All batches are full: up to
    batch_size - 1 tracks per rank sit out an epoch, others in each, as the order changes.
    """

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = "image",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Apply `recipe`: text that `parse_recipe` reads, or a tuple of augmentations."""
        self._recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
        super().__init__(data, **options)

    def _graph(self, **options: Any) -> Pipeline:
        return graph.two_views(self._source, self._recipe, self._features, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return outputs[0], outputs[1]


class LabelledLoader(_Loader[tuple[Tensor, Tensor]]):
    """A random crop of every labelled track, for training a classifier.

    Yields (mels, labels): float32 [batch_size, 1, n_mels, frames] and int64 [batch_size]. All batches are
    full; if there are fewer tracks than `batch_size`, they are one batch.
    """

    _labelled_only = True

    def _graph(self, **options: Any) -> Pipeline:
        return graph.labelled_crops(self._source, self._features, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return outputs[0], outputs[1].long()

    def _fitting(self, batch_size: int) -> int:
        fewest = self._source.tracks // self._source.world_size
        return super()._fitting(min(batch_size, fewest) if fewest else batch_size)


class TrackLoader(_Loader[tuple[Tensor, Tensor]]):
    """All of every labelled track, each track exactly once and in the order of the shards, for evaluation.

    Yields (mels, labels): float32 [tracks, crops, 1, n_mels, frames] and int64 [tracks], where tracks is
    `batch_size`, or less in the last batch. The crops are evenly spaced from the first to the last second.
    """

    _shuffle = False
    _labelled_only = True

    def __init__(
        self, data: ShardSet | Path | str, *, crops: int | None = None, **options: Unpack[LoaderOptions]
    ) -> None:
        """Take `crops` of each track; by default as many as cover the longest, up to `MOST_CROPS`."""
        self._crops = crops
        super().__init__(data, **options)

    @property
    def crops(self) -> int:
        """Crops of each track."""
        longest = max(shard.longest for shard in self._source.shards)
        return self._crops or min(math.ceil(longest / self.mel.samples), MOST_CROPS)

    def _graph(self, **options: Any) -> Pipeline:
        return graph.whole_tracks(self._source, self.crops, self._features, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        left = self._source.tracks_here - (self._position - 1) * self.batch_size
        return outputs[0][:left], outputs[1][:left].long()

    def _fitting(self, batch_size: int) -> int:
        return super()._fitting(max(1, min(batch_size, self._source.tracks_here)))

    @property
    def _batches(self) -> int:
        return math.ceil(self._source.tracks_here / self.batch_size)


def _with_index(device: torch.device) -> torch.device:
    """Return `device` with a number if it is a GPU: DALI and torch must mean the same one."""
    if device.type != "cuda":
        return torch.device(device.type)
    index: int | None = device.index
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def _share_of_cores() -> int:
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
