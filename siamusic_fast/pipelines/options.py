"""What all loaders take, whichever backend makes their batches, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from siamusic_fast.config import CROPS, MAX_SEED, SHORT_TRACKS, MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.source import Source, check_crops
from siamusic_fast.pipelines.subset import with_share
from siamusic_fast.shards.manifest import ShardSet, find_shards

MOST_CROPS = 128
"""Crops of a track in evaluation unless more are asked for: 640 s of the paper's features, evenly spaced."""
DTYPES = (torch.float32, torch.bfloat16)


class LoaderOptions(TypedDict, total=False):
    """Keyword arguments that all loaders take."""

    splits: Sequence[str]
    """Of the shard set; by default training."""
    mel: MelConfig
    """Features; by default the paper's, at the sample rate of the shards."""
    normalisation: Normalisation
    """Constants; by default estimated once and kept beside the shards."""
    short_tracks: str
    """What is done with tracks that are shorter than a crop: "repeat", the default, or "pad"."""
    batch_size: int
    """Of this process; 64 by default."""
    device: torch.device | str
    """Where the features are computed and the batches are: "cpu", the default, or "cuda:0"."""
    dtype: torch.dtype
    """Of the spectrograms: torch.float32, the default, or torch.bfloat16."""
    threads: int
    """CPU threads; by default this process's share of the cores."""
    seed: int
    """Of order, crops and augmentations; 0 by default."""
    rank: int
    """Which process this is, from 0; each gets tracks of its own."""
    world_size: int
    """How many processes there are; 1 by default."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which moments of a track its two views show."""

    crops: str = CROPS[0]
    """One of `CROPS`."""
    max_distance: float | None = None
    """Between the starts of independent crops, in seconds, before a time stretch; None: anywhere."""

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise ConfigError(f"crops = {self.crops!r} is unknown: choose {' or '.join(CROPS)}.")
        if self.max_distance is not None and self.max_distance < 0:
            raise ConfigError(f"max_distance = {self.max_distance:g} s must not be negative.")
        if self.max_distance is not None and not self.independent:
            raise ConfigError(f"max_distance = {self.max_distance:g} s is for independent crops only.")

    @property
    def independent(self) -> bool:
        """Whether the second view has a moment of its own."""
        return self.crops == "independent"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The options of a loader, checked, with their defaults."""

    source: Source
    mel: MelConfig
    normalisation: Normalisation | None
    """None: to be estimated."""
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    threads: int | None

    @property
    def full_batches(self) -> int:
        """Batches of an epoch that every rank can fill."""
        return self.source.tracks // self.source.world_size // self.batch_size

    @property
    def batches_here(self) -> int:
        """Batches that take all tracks of this rank, the last of them not always full."""
        return -(-self.source.tracks_here // self.batch_size)


def set_up(
    data: ShardSet | Path | str,
    options: LoaderOptions,
    *,
    shuffle: bool,
    labelled_only: bool,
    smaller_batches: bool,
    labels: float = 1.0,
) -> Setup:
    """Return what a loader needs to know of `data` (a shard set, its folder or name) and `options`.

    `labels` is the share of the tracks that it reads. If there are fewer tracks than a batch takes, the batch
    gets smaller if that is allowed. Raises `ConfigError` otherwise, and if the crops do not fit the shards or
    an option has a wrong value, and `TypeError` for an option that there is not.
    """
    if unknown := options.keys() - LoaderOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}: there are {_names()}")
    shard_set = data if isinstance(data, ShardSet) else find_shards(data)
    mel = options.get("mel") or MelConfig(sample_rate=shard_set.sample_rate)
    short_tracks = options.get("short_tracks", SHORT_TRACKS[0])
    if short_tracks not in SHORT_TRACKS:
        raise ConfigError(f"short_tracks = {short_tracks!r} is unknown: choose {' or '.join(SHORT_TRACKS)}.")
    dtype = options.get("dtype", torch.float32)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype} must be one of {', '.join(map(str, DTYPES))}.")
    rank, world_size, seed = options.get("rank", 0), options.get("world_size", 1), options.get("seed", 0)
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank = {rank} must be at least 0 and below world_size = {world_size}.")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed = {seed} must lie between 0 and {MAX_SEED}.")
    source = Source(
        shard_set=shard_set,
        shards=shard_set.shards(options.get("splits", ("training",)), labelled_only=labelled_only),
        shuffle=shuffle,
        short_tracks=short_tracks,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    check_crops(source, mel)
    source = with_share(source, labels, source.seed)
    return Setup(
        source=source,
        mel=mel,
        normalisation=options.get("normalisation"),
        batch_size=_fitting(options.get("batch_size", 64), source, smaller_batches=smaller_batches),
        device=_with_index(torch.device(options.get("device", "cpu"))),
        dtype=dtype,
        threads=options.get("threads"),
    )


def crops_of(source: Source, mel: MelConfig, asked: int | None) -> int:
    """Return how many crops to take of a track: `asked`, or as cover the longest, up to `MOST_CROPS`."""
    if asked is not None and asked < 1:
        raise ConfigError(f"crops = {asked} must be at least 1.")
    if asked is not None:
        return asked
    longest = max(shard.longest for shard in source.shards)
    return min(-(-longest // source.span(mel)), MOST_CROPS)


def _fitting(batch_size: int, source: Source, *, smaller_batches: bool) -> int:
    """Return `batch_size`, or a smaller one; raise `ConfigError` if the tracks do not fill a batch."""
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1.")
    fewest = source.tracks // source.world_size
    if fewest == 0:
        raise ConfigError(
            f"{source.shard_set.folder} has {source.tracks} such tracks, too few for {source.world_size} "
            f"processes: use {source.tracks}."
        )
    if smaller_batches:
        return min(batch_size, fewest if source.shuffle else source.tracks_here)
    if batch_size > fewest:
        shared = f" that each of {source.world_size} processes gets" if source.world_size > 1 else ""
        raise ConfigError(
            f"A batch of {batch_size} does not fit the {fewest} tracks{shared}: "
            f"use --batch-size {fewest} or less."
        )
    return batch_size


def _with_index(device: torch.device) -> torch.device:
    """Return `device` with a number if it is a GPU: DALI and torch must mean the same one."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device} must be cpu or cuda.")
    if device.type == "cpu":
        return torch.device("cpu")
    index: int | None = device.index
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def _names() -> str:
    return ", ".join(LoaderOptions.__annotations__)
