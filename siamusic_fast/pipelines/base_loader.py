"""What all loaders share: their keyword arguments, epochs, resuming, and the threads behind them."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.config import BACKENDS, MAX_SEED
from siamusic_fast.config.fields import Between, check_value
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.checks import check_backend, check_cache, check_length
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.plan import Batch, Place, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Engine, Prefetcher
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.engine import TorchEngine
from siamusic_fast.pipelines.tracks import Tracks, open_tracks
from siamusic_fast.processes.pool import share_of_cores
from siamusic_fast.shards.manifest import ShardSet, find_shards

T = TypeVar("T")

_DTYPES = (torch.float32, torch.bfloat16)
_MAX_READERS = 4
"""Threads that read wav shards: one reads about 30,000 crops a second."""
_DEPTH = 4
"""Batches whose samples are in memory: two that an engine computes, two that are being read."""


@dataclass(eq=False, repr=False)
class Loader(ABC, Generic[T]):
    """Iterates over a shard set in batches: the base class of all loaders.

    **Epochs.** Iterating once is one epoch, and `len(loader)` is its number of batches. A loop that is left
    early goes on where it stopped when the loader is iterated again. Threads make the next batches while a
    batch is being used. No other processes are started.

    **Resuming.** `state_dict()` is the epoch and the number of batches that were given out of it. A loader
    with the same arguments goes on from there after `load_state_dict(state)`, and gives the same bits as one
    that was never stopped, whatever its `loader_threads`.

    **Closing.** `close()`, or leaving a `with` block, stops the threads and frees the memory. Batches that
    were given out stay what they are.

    **Arguments.** All loaders take these keyword arguments:

    - `data`: a `ShardSet`, its folder, its URL, or its name, which is looked up in `data/shards`.
    - `splits`: the splits of the shard set to read.
    - `frontend`: the features. None: the paper's, at the sample rate of the shards, with a mean and a
      standard deviation that are estimated once and kept beside the shards.
    - `batch_size`: tracks per batch of this process.
    - `backend`: the engine that computes the features, "dali" or "torch".
    - `device`: where the features are computed and the batches are, such as "cpu" or "cuda:0".
    - `dtype`: the type of the spectrograms, torch.float32 or torch.bfloat16.
    - `loader_threads`: CPU threads. None: this process's share of the cores.
    - `window`: the number of shards among whose tracks an epoch is shuffled. None: all of them. The shards of
      object storage are fetched window by window, and the cache must hold two.
    - `seed`: the seed of order, crops and augmentations.
    - `rank`, `world_size`: the number of this process and of all. Each process gets tracks of its own.

    They are attributes of a loader, too: `frontend`, `batch_size` and `device` are what it really uses.

    **Errors.** Raises `ConfigError` for an argument that cannot be or does not fit the tracks. Raises
    `DataError` for damaged shards, when the loader is made or, for damage that shows later, while iterating.
    """

    data: ShardSet | Path | str
    _: KW_ONLY
    splits: Sequence[str] = ("training",)
    frontend: Frontend = None  # type: ignore[assignment]  # estimated unless given
    batch_size: int = 64
    backend: str = BACKENDS[0]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    loader_threads: int | None = None
    window: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    _endless = True
    """Whether the next epoch is begun while the last batches of one are used."""

    def __post_init__(self) -> None:
        self._check_arguments()
        self.device = self._device = _numbered_device(self.device)
        self.plan = self._planned()
        self.frontend, self.batch_size = self.plan.frontend, self.plan.batch_size
        self._reader = Reader(self.plan.tracks, self.frontend)
        self._engine: Engine | None = None
        self._stream: Iterator[T] | None = None
        self._epoch = self._given = 0
        self._closed = False

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

        Only `batch_size`, `rank` and `world_size` may differ, if `batch_size` times `world_size` does not.
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
    def _planned(self) -> Plan | TrackPlan:
        """Return the plan of the batches; raise `ConfigError` for arguments that do not fit the tracks."""

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
        threads = self.loader_threads or share_of_cores()
        if self._engine is None:
            self._engine = _engine(self.plan, self.backend, self._device, threads)
        only_reads = self.backend == "dali" or self._device.type != "cpu"
        of_wav = self.plan.tracks.shard_set.codec == "wav"
        prefetcher = Prefetcher(
            self.plan,
            self._reader,
            self._engine,
            self._places(),
            threads=min(threads, _MAX_READERS) if only_reads and of_wav else threads,
            depth=_DEPTH,
            pinned=self._device.type != "cpu",
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
        return images.to(self.dtype)

    def _labels(self, batch: Batch, target: str | None) -> Tensor:
        """Return the classes of the tracks of `batch`, int64 [tracks], or tags, float32 [tracks, tags]."""
        tracks = self.plan.tracks
        assert tracks.labels is not None
        assert tracks.tags is not None
        rows = batch.tracks
        known = tracks.tags[rows].astype(np.float32) if target == "tags" else tracks.labels[rows]
        return torch.from_numpy(known).to(self.device, non_blocking=True)

    def _opened(self, *, labels: bool = False, target: str | None = None) -> tuple[Frontend, Tracks]:
        """Return the features and the tracks; raise `ConfigError` if they do not fit each other."""
        shard_set = self.data if isinstance(self.data, ShardSet) else find_shards(self.data)
        shards = shard_set.shards(self.splits, labelled_only=target == "class")
        window = self.window if self._endless else self.world_size
        check_cache(shard_set, shards, window, self.batch_size * self.world_size)
        frontend = self.frontend or estimate_frontend(shard_set)
        tracks = open_tracks(shard_set, self.splits, target=target, labels=labels)
        check_length(tracks, frontend.mel)
        return frontend, tracks

    def _check_arguments(self) -> None:
        """Raise `ConfigError` for an argument that cannot be."""
        if isinstance(self.splits, str) or not self.splits:
            raise ConfigError(f"splits = {self.splits!r} must be a list of names, such as ['training'].")
        check_backend(self.backend)
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype = {self.dtype} must be one of {', '.join(map(str, _DTYPES))}.")
        for name in ("batch_size", "loader_threads", "window"):
            value = getattr(self, name)
            optional = value is None and name != "batch_size"
            if not optional and not (isinstance(value, int) and value >= 1):
                option = name.replace("_", "-")
                raise ConfigError(
                    f"{name} = {value!r} must be a whole number of at least 1 (on the command line "
                    f"--{option})."
                )
        check_value("seed", self.seed, Between(0, MAX_SEED))
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank = {self.rank} must be at least 0 and below world_size = {self.world_size}."
            )


def _numbered_device(given: torch.device | str) -> torch.device:
    """Return the device, with a number if it is a GPU: engines and torch must mean the same one."""
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {given!s} must be cpu or cuda.")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = (torch.cuda.current_device() if count else 0) if device.index is None else device.index
    if index >= count:
        raise ConfigError(
            f"device = {given!s} asks for a GPU, and {count} are visible: use device='cpu' (on the "
            f"command line --gpus 0)."
        )
    return torch.device("cuda", index)


def _engine(plan: Plan | TrackPlan, backend: str, device: torch.device, threads: int) -> Engine:
    if backend == "torch":
        return TorchEngine(plan, device)
    from siamusic_fast.pipelines.dali.engine import DaliEngine  # only here: DALI may not be installed

    return DaliEngine(plan, device, threads)
