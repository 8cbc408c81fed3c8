"""Loaders: iterate over shards and get batches of spectrograms on the right device.

    loader = TwoViewLoader("data/shards/fma_medium", recipe="image", batch_size=256, device="cuda")
    for view_1, view_2 in loader:
        ...

Iterating once is one epoch; leaving it early and iterating again goes on where it stopped. While a batch is
being used, the next ones are made in the background.
"""

import base64
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from siamusic_fast.config import CROPS
from siamusic_fast.errors import DataError
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.options import LoaderOptions, Pairing, crops_of, set_up
from siamusic_fast.pipelines.recipes import Recipe, check_unmixed, to_recipe
from siamusic_fast.pipelines.source import Source, remedy
from siamusic_fast.pipelines.stats import normalisation_of
from siamusic_fast.pipelines.torch_source import Tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import share_of_cores

Batch = TypeVar("Batch")
T = TypeVar("T")

_PREFETCH = 2
"""Batches that DALI makes ahead."""


class _Loader(ABC, Generic[Batch]):
    """What all loaders share: the pipeline, its epochs and its state.

    `data` is a shard set, its folder, or its name; for the other arguments see `LoaderOptions`. Raises
    `ConfigError` if the crops do not fit the shards, or the batches do not fit the number of tracks.

    A pipeline's epoch ends on a batch of its own, padded with repeated tracks. `_batches` of it are given
    out, the rest is drawn and dropped when the next epoch is asked for.
    """

    _shuffle = True
    _labelled_only = False
    _smaller_batches = False

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = (),
        labels: float = 1.0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self._setup = set_up(
            data,
            options,
            shuffle=self._shuffle,
            labelled_only=self._labelled_only,
            smaller_batches=self._smaller_batches,
            labels=labels,
        )
        self.mel, self.device = self._setup.mel, self._setup.device
        self.batch_size = self._setup.batch_size
        self._recipe = to_recipe(recipe, self.mel)
        self.normalisation = normalisation_of(self._setup)
        self._features = graph.Features(
            self.mel, self.normalisation, "gpu" if self.device.type == "cuda" else "cpu"
        )
        self._position = 0
        self._pipeline: Pipeline | None = self._build(checkpoint=None)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        if self._position == self._batches:
            for _ in range(self._padded_batches - self._batches):
                self._run()
            self._position = 0
        while self._position < self._batches:
            outputs = self._run()
            self._position += 1
            yield self._batch([self._tensor(output) for output in outputs])

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

    @property
    def _source(self) -> Source:
        return self._setup.source

    @property
    def _batches(self) -> int:
        """Batches of an epoch that are given out."""
        return self._setup.full_batches

    @property
    def _padded_batches(self) -> int:
        """Batches of an epoch that the pipeline makes."""
        return math.ceil(math.ceil(self._source.tracks / self._source.world_size) / self.batch_size)

    def _build(self, checkpoint: bytes | None) -> Pipeline:
        random_state = np.random.SeedSequence([self._source.seed, self._source.rank])
        pipeline = self._graph(
            batch_size=self.batch_size,
            num_threads=self._setup.threads or share_of_cores(),
            device_id=self.device.index,
            seed=int(random_state.generate_state(1)[0]),
            prefetch_queue_depth=_PREFETCH,
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
        self._naming_shards(pipeline.build)
        return pipeline

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise ValueError("This loader is closed.")
        return self._pipeline

    def _run(self) -> Any:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        pipeline = self._open_pipeline()
        return self._naming_shards(lambda: pipeline.run(stream))

    def _naming_shards(self, call: Callable[[], T]) -> T:
        """Return `call()`; if it fails because of a shard, say which and what to do."""
        try:
            return call()
        except RuntimeError as error:
            folder = self._source.shard_set.folder
            if "decoders.audio" in str(error):  # which does not say of what
                Tracks(self._source, self._source.span(self.mel)).check()
                raise DataError(f"A track in {folder} cannot be decoded: {remedy(folder)}") from error
            found = re.search(re.escape(str(folder)) + r"/([^/\s:\"]+)\.(?:tar|idx)", str(error))
            if found is None:
                raise
            raise DataError(
                f"{folder / found[1]}.tar or {folder / found[1]}.idx is missing or damaged: {remedy(folder)}"
            ) from error

    def _tensor(self, output: Any) -> Tensor:
        """Return a batch as a tensor over DALI's own memory, which lives as long as the tensor."""
        return from_dlpack(output.as_tensor())

    def _mels(self, output: Tensor) -> Tensor:
        """Return spectrograms in the precision asked for: without a copy if that is float32."""
        return output.to(self._setup.dtype)


class TwoViewLoader(_Loader[tuple[Tensor, Tensor]]):
    """Two augmented views of every track, for pre-training.

    Yields (view_1, view_2), each float32 or bfloat16 [batch_size, 1, n_mels, frames]. All batches are full:
    up to batch_size - 1 tracks per rank sit out an epoch, others in each, as the order changes.
    """

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = "image",
        crops: str = CROPS[0],
        max_distance: float | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Apply `recipe`: text that `parse_recipe` reads, or a tuple of augmentations.

        With `crops` "same" both views show the same seconds, with "independent" each its own, which start at
        most `max_distance` seconds apart if that is given.
        """
        self._pairing = Pairing(crops=crops, max_distance=max_distance)
        super().__init__(data, recipe=recipe, **options)

    def _graph(self, **options: Any) -> Pipeline:
        return graph.two_views(self._source, self._recipe, self._features, self._pairing, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(outputs[0]), self._mels(outputs[1])


class LabelledLoader(_Loader[tuple[Tensor, Tensor]]):
    """A random crop of every labelled track, for training a classifier.

    Yields (mels, labels): float32 or bfloat16 [batch_size, 1, n_mels, frames] and int64 [batch_size]. All
    batches are full; if there are fewer tracks than `batch_size`, they are one batch.
    """

    _labelled_only = True
    _smaller_batches = True

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = "none",
        labels: float = 1.0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Augment with `recipe`, and read the share `labels` of the tracks of each class only.

        Raises `ConfigError` if `recipe` mixes tracks: the label would no longer be that of the crop.
        """
        check_unmixed(recipe)
        super().__init__(data, recipe=recipe, labels=labels, **options)

    def _graph(self, **options: Any) -> Pipeline:
        return graph.labelled_crops(self._source, self._recipe, self._features, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self._mels(outputs[0]), outputs[1].long()


class TrackLoader(_Loader[tuple[Tensor, Tensor]]):
    """All of every labelled track, each track exactly once and in the order of the shards, for evaluation.

    Yields (mels, labels): float32 or bfloat16 [tracks, crops, 1, n_mels, frames] and int64 [tracks], where
    tracks is `batch_size`, or less in the last batch. The crops are evenly spaced from the first to the last
    second.
    """

    _shuffle = False
    _labelled_only = True
    _smaller_batches = True

    def __init__(
        self, data: ShardSet | Path | str, *, crops: int | None = None, **options: Unpack[LoaderOptions]
    ) -> None:
        """Take `crops` of each track; by default as many as cover the longest, up to 128."""
        self._crops = crops
        super().__init__(data, **options)

    @property
    def crops(self) -> int:
        """Crops of each track."""
        return crops_of(self._source, self.mel, self._crops)

    def _graph(self, **options: Any) -> Pipeline:
        return graph.whole_tracks(self._source, self.crops, self._features, **options)

    def _batch(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        left = self._source.tracks_here - (self._position - 1) * self.batch_size
        return self._mels(outputs[0][:left]), outputs[1][:left].long()

    @property
    def _batches(self) -> int:
        return self._setup.batches_here
