"""DALI nodes that read shards: whole tracks as memory-mapped int16, and crops cut out of them."""

import math
from dataclasses import dataclass

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.shards.manifest import Shard, ShardSet

READER = "tracks"
"""Name of the reader in every graph."""

HEADER = 22
"""int16 values before the first sample of a WAV file: its canonical header has 44 bytes."""
_SHUFFLE_BUFFER = 1024
"""Tracks among which the reader draws the next. They are mapped, not read, so the buffer takes no memory."""
_LABEL_WEIGHTS = np.array([0, 1000, 100, 10, 1], dtype=np.int32)
_ZERO, _MINUS = ord("0"), ord("-")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which tracks a process reads, and in which order."""

    shard_set: ShardSet
    shards: tuple[Shard, ...]
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    @property
    def tracks(self) -> int:
        """Tracks of all ranks together."""
        return sum(shard.tracks for shard in self.shards)

    @property
    def tracks_here(self) -> int:
        """Tracks of this rank in the first epoch; ranks differ by at most one."""
        return self.tracks * (self.rank + 1) // self.world_size - self.tracks * self.rank // self.world_size

    # These two are properties, not calls in `read`: DALI converts every call within a graph function, which
    # takes it a millisecond each, and a million tracks have 2,000 shards.
    @property
    def tars(self) -> list[str]:
        """Paths of the tars."""
        return [str(self.shard_set.path(shard.file)) for shard in self.shards]

    @property
    def indices(self) -> list[str]:
        """Paths of their indices."""
        return [str(self.shard_set.path(shard.index)) for shard in self.shards]


def check_crops(source: Source, mel: MelConfig) -> None:
    """Raise `ConfigError` if the tracks cannot be read, or lack the rate or the length that `mel` needs."""
    rate = source.shard_set.sample_rate
    if source.shard_set.codec != "wav":
        raise ConfigError(
            f"The shards in {source.shard_set.folder} have codec {source.shard_set.codec}, and the loaders "
            f"read wav: pack the audio again with --codec wav."
        )
    if mel.sample_rate != rate:
        raise ConfigError(
            f"The features ask for {mel.sample_rate} Hz and the shards in {source.shard_set.folder} "
            f"have {rate} Hz: pack the audio again at that rate."
        )
    shortest = min(shard.shortest for shard in source.shards)
    if shortest < mel.samples:
        raise ConfigError(
            f"A crop of {mel.seconds:g} s is longer than the shortest track in {source.shard_set.folder}, "
            f"{shortest / rate:.1f} s: use --seconds {math.floor(10 * shortest / rate) / 10:g} or less, "
            f"or pack again with --min-seconds {mel.seconds:g}."
        )


def read(source: Source) -> tuple[DataNode, DataNode]:
    """Return (wav, label) nodes: whole files as int16, without a copy, and int32 scalars, -1 for no class.

    Each rank reads its own part of the shards. An epoch ends on a batch of its own: its tail repeats the
    last track (`pad_last_batch`), so that no track of the next epoch comes early. When shuffling, ranks
    exchange their parts from epoch to epoch (`stick_to_shard`).
    """
    wav, cls = fn.readers.webdataset(
        name=READER,
        paths=source.tars,
        index_paths=source.indices,
        ext=["wav", "cls"],
        dtypes=[types.INT16, types.UINT8],
        missing_component_behavior="error",
        random_shuffle=source.shuffle,
        initial_fill=min(_SHUFFLE_BUFFER, source.tracks),
        seed=source.seed,
        shard_id=source.rank,
        num_shards=source.world_size,
        stick_to_shard=not source.shuffle,
        pad_last_batch=True,
    )
    return wav, _label(cls)


def length(audio: DataNode) -> DataNode:
    """Return the number of values in `audio`, int32."""
    return fn.cast(audio.shape()[0], dtype=types.INT32)


def crop(audio: DataNode, samples: DataNode | int, position: DataNode | float, skip: int = 0) -> DataNode:
    """Cut `samples` out of `audio` after its first `skip` values; `position`, 0 to 1, says where.

    At one position, the longer of two crops contains the shorter:

        audio           |-----------------------------------|
        position 0.25   short    |======|
                        long   |============|
    """
    spare = fn.cast(length(audio) - skip - samples, dtype=types.FLOAT)
    start = fn.cast(dmath.floor(position * spare + 0.5), dtype=types.INT32) + skip
    return fn.slice(audio, start=start, shape=samples, axes=[0])


def _label(digits: DataNode) -> DataNode:
    """Turn five ASCII bytes such as ``00003`` or ``-0001`` into an int32 scalar."""
    digits = fn.cast(digits, dtype=types.INT32)
    value = fn.reductions.sum((digits - _ZERO) * types.Constant(_LABEL_WEIGHTS), axes=[0])
    sign = 1 - 2 * fn.cast(digits[0] == _MINUS, dtype=types.INT32)
    return fn.cast(value * sign, dtype=types.INT32)
