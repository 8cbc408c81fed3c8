"""The loaders of `loader` in torch: for systems without DALI, as its reference in tests, and as its peer.

    loader = TorchTwoViewLoader("data/shards/fma_medium", recipe="image", workers=2)
    for view_1, view_2 in loader:
        ...

Crops are read from the memory-mapped tars at the offsets in their index files, and tracks are shuffled over
the whole split; the `webdataset` library, which reads whole tracks one after the other, serves the tests. A
stream of batches depends on the seed and the rank alone, not on workers, nor on where it was started.
"""

import contextlib
import itertools
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from siamusic_fast.config import CROPS
from siamusic_fast.pipelines.options import LoaderOptions, Pairing, crops_of, set_up
from siamusic_fast.pipelines.recipes import Recipe, check_unmixed, to_recipe
from siamusic_fast.pipelines.stats import normalisation_of
from siamusic_fast.pipelines.torch_batches import LabelledCrops, Maker, Outputs, TwoViews, WholeTracks
from siamusic_fast.pipelines.torch_features import LogMel
from siamusic_fast.pipelines.torch_source import Place, Plan, Tracks
from siamusic_fast.shards.manifest import ShardSet

_PREFETCH = 2
"""Batches that each worker makes ahead."""


class _TorchLoader(ABC):
    """What all torch loaders share; for the arguments see `LoaderOptions`.

    `workers` processes read ahead, or none: then this one reads when a batch is asked for. They compute as
    well, one sample at a time, unless `per_batch`: then this process computes, whole batches, on `device`. By
    default `per_batch` is what is faster: true on a GPU only. `threads` are what torch uses in this process
    while it computes. Raises `ConfigError` as the DALI loaders do, and for an augmentation that is not
    implemented here.
    """

    _shuffle = True
    _labelled_only = False
    _smaller_batches = False

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        workers: int = 0,
        per_batch: bool | None = None,
        recipe: str | Recipe = (),
        labels: float = 1.0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        setup = self._setup = set_up(
            data,
            options,
            shuffle=self._shuffle,
            labelled_only=self._labelled_only,
            smaller_batches=self._smaller_batches,
            labels=labels,
        )
        self.mel, self.device, self.batch_size = setup.mel, setup.device, setup.batch_size
        self._recipe = to_recipe(recipe, self.mel)
        self.normalisation = normalisation_of(setup)
        self._workers = workers
        self._per_batch = self.device.type != "cpu" if per_batch is None else per_batch
        computes_on = self.device if self._per_batch else torch.device("cpu")
        self._maker = self._make(
            Plan(setup.source, self.batch_size, len(self)),
            Tracks(setup.source, setup.source.span(self.mel)),
            LogMel(self.mel, self.normalisation, setup.source.rate, computes_on),
            per_batch=self._per_batch,
        )
        self._epoch = self._position = 0
        self._stream: Iterator[Any] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._setup.full_batches

    def __iter__(self) -> Iterator[Outputs]:
        if self._position == len(self):
            self._epoch, self._position = self._epoch + 1, 0
        while self._position < len(self):
            batch = self._next()
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the place in it, as plain values."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned, of a loader with the same arguments."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._stream = None

    def close(self) -> None:
        """Stop the workers; the loader is of no use afterwards."""
        self._stream = None
        self._maker.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _make(self, plan: Plan, tracks: Tracks, features: LogMel, *, per_batch: bool) -> Maker:
        """Return what makes the batches."""

    def _next(self) -> Outputs:
        if self._closed:
            raise ValueError("This loader is closed.")
        if self._stream is None:
            self._stream = self._started()
        with _torch_threads(self._setup.threads):
            made = next(self._stream)
            if self._per_batch:
                crops = made._replace(pcm=self._moved(made.pcm), labels=self._moved(made.labels))
                made = self._maker.compute(crops, (self._epoch, self._position))
        return self._output(made[0]), self._output(made[1])

    def _started(self) -> Iterator[Any]:
        """Return an endless stream of what the workers make, from the present place on."""
        places = _Places(self._epoch, self._position, len(self))
        job = _Job(self._maker, only_read=self._per_batch)
        if self._workers == 0:
            return map(job.__getitem__, places)
        return iter(
            DataLoader(
                job,
                batch_size=None,
                sampler=places,
                num_workers=self._workers,
                prefetch_factor=_PREFETCH,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_stopping_to_the_trainer,
                generator=torch.Generator(),  # else it would draw from torch's global one as workers start
            )
        )

    def _output(self, tensor: Tensor) -> Tensor:
        """Return labels, or spectrograms in the precision asked for, on the device of the loader."""
        moved = self._moved(tensor)
        return moved.to(self._setup.dtype) if tensor.is_floating_point() else moved

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _leave_stopping_to_the_trainer(worker: int) -> None:
    """Ignore what asks a whole group of processes to stop, as SLURM and `timeout` do.

    The training that the worker serves finishes its step, saves, and then lets it end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class TorchTwoViewLoader(_TorchLoader):
    """Two augmented views of every track, for pre-training; yields what `TwoViewLoader` does."""

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = "image",
        crops: str = CROPS[0],
        max_distance: float | None = None,
        workers: int = 0,
        per_batch: bool | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Apply `recipe` to the views that `crops` and `max_distance` ask for, as `TwoViewLoader` does."""
        self._pairing = Pairing(crops=crops, max_distance=max_distance)
        super().__init__(data, workers=workers, per_batch=per_batch, recipe=recipe, **options)

    def _make(self, *parts: Any, **options: Any) -> Maker:
        return TwoViews(self._recipe, self._pairing, *parts, **options)


class TorchLabelledLoader(_TorchLoader):
    """A random crop of every labelled track, for training a classifier; yields what `LabelledLoader` does."""

    _labelled_only = True
    _smaller_batches = True

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        recipe: str | Recipe = "none",
        labels: float = 1.0,
        workers: int = 0,
        per_batch: bool | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Apply `recipe` to the share `labels` of the tracks, as `LabelledLoader` does."""
        check_unmixed(recipe)
        super().__init__(data, workers=workers, per_batch=per_batch, recipe=recipe, labels=labels, **options)

    def _make(self, *parts: Any, **options: Any) -> Maker:
        return LabelledCrops(self._recipe, *parts, **options)


class TorchTrackLoader(_TorchLoader):
    """All of every labelled track, once and in order, for evaluation; yields what `TrackLoader` does."""

    _shuffle = False
    _labelled_only = True
    _smaller_batches = True

    def __init__(
        self,
        data: ShardSet | Path | str,
        *,
        crops: int | None = None,
        workers: int = 0,
        per_batch: bool | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Take `crops` of each track; by default as many as cover the longest, up to 128."""
        self._crops = crops
        super().__init__(data, workers=workers, per_batch=per_batch, **options)

    def __len__(self) -> int:
        return self._setup.batches_here

    @property
    def crops(self) -> int:
        """Crops of each track."""
        return crops_of(self._setup.source, self.mel, self._crops)

    def _make(self, *parts: Any, **options: Any) -> Maker:
        return WholeTracks(self.crops, *parts, **options)


class _Places(Sampler[Place]):
    """Epoch after epoch, without an end: workers need not wait where one ends."""

    def __init__(self, epoch: int, position: int, batches: int) -> None:
        self._start = (epoch, position)
        self._batches = batches

    def __iter__(self) -> Iterator[Place]:
        first_epoch, first = self._start
        for epoch in itertools.count(first_epoch):
            for position in range(first if epoch == first_epoch else 0, self._batches):
                yield epoch, position


class _Job(Dataset[Any]):
    """What a worker does for a batch."""

    def __init__(self, maker: Maker, *, only_read: bool) -> None:
        self._maker = maker
        self._only_read = only_read

    def __getitem__(self, place: Place) -> Any:
        crops = self._maker.read(place)
        return crops if self._only_read else self._maker.compute(crops, place)


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while; as many as before if `None`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
