"""DALI nodes that read shards: whole tracks as int16, and crops cut out of them.

The tracks of wav shards are mapped into memory and only their crops are read; those of flac and ogg shards
are decoded whole.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.shards.manifest import Shard, ShardSet

READER = "tracks"
"""Name of the reader in every graph."""

_WAV_HEADER = 22
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
    short_tracks: str = SHORT_TRACKS[0]
    """What is done with tracks that are shorter than a crop, one of `SHORT_TRACKS`."""
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

    @property
    def rate(self) -> int:
        """Samples per second of the shards."""
        return self.shard_set.sample_rate

    @property
    def mapped(self) -> bool:
        """Whether the audio lies in the shards as samples, which need no decoding."""
        return self.shard_set.codec == "wav"

    @property
    def header(self) -> int:
        """int16 values before the first sample of what `read` returns."""
        return _WAV_HEADER if self.mapped else 0

    def span(self, mel: MelConfig) -> int:
        """Return how many samples of the shards a crop takes: as many as it has, unless the rates differ."""
        return -(-mel.samples * self.rate // mel.sample_rate)

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
    """Raise `ConfigError` if a crop of `mel` is longer than every track."""
    longest = max(shard.longest for shard in source.shards)
    seconds = longest / source.rate
    if longest < source.span(mel):
        raise ConfigError(
            f"A crop of {mel.seconds:g} s is longer than the longest track in {source.shard_set.folder}, "
            f"{seconds:.1f} s: use --seconds {math.floor(10 * seconds) / 10:g} or less."
        )


def read(source: Source, mel: MelConfig) -> tuple[DataNode, DataNode]:
    """Return (audio, label) nodes: int16, `source.header` values before the samples, and int32, -1: no class.

    Each rank reads its own part of the shards. An epoch ends on a batch of its own: its tail repeats the
    last track (`pad_last_batch`), so that no track of the next epoch comes early. When shuffling, ranks
    exchange their parts from epoch to epoch (`stick_to_shard`). Tracks are at least as long as a crop.
    """
    audio, cls = fn.readers.webdataset(
        name=READER,
        paths=source.tars,
        index_paths=source.indices,
        ext=[source.shard_set.codec, "cls"],
        dtypes=[types.INT16 if source.mapped else types.UINT8, types.UINT8],
        missing_component_behavior="error",
        random_shuffle=source.shuffle,
        initial_fill=min(_SHUFFLE_BUFFER, source.tracks),
        seed=source.seed,
        shard_id=source.rank,
        num_shards=source.world_size,
        stick_to_shard=not source.shuffle,
        pad_last_batch=True,
    )
    if not source.mapped:
        audio, _ = fn.decoders.audio(audio, dtype=types.INT16, downmix=True)
    return _lengthened(audio, source, source.span(mel)), _label(cls)


def remedy(folder: Path) -> str:
    """Return what to do about damaged shards in `folder`."""
    return f"`siamusic-fast verify {folder}` says what is wrong with it; packing again mends it."


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


def _lengthened(audio: DataNode, source: Source, samples: int) -> DataNode:
    """Return `audio` with at least `samples` behind its header: repeated, or with silence at its end."""
    shortest, values = min(shard.shortest for shard in source.shards), source.header + samples
    doublings = max(0, math.ceil(math.log2(samples / max(shortest, 1))))
    if source.short_tracks == "pad" and doublings:
        if length(audio) < values:
            audio = fn.pad(audio, axes=[0], shape=[values])
        doublings = 0
    for _ in range(doublings):
        if length(audio) < values:
            again = fn.slice(audio, start=source.header, end=length(audio), axes=[0])
            audio = fn.cat(audio, again)
    return audio


def _label(digits: DataNode) -> DataNode:
    """Turn five ASCII bytes such as ``00003`` or ``-0001`` into an int32 scalar."""
    digits = fn.cast(digits, dtype=types.INT32)
    value = fn.reductions.sum((digits - _ZERO) * types.Constant(_LABEL_WEIGHTS), axes=[0])
    sign = 1 - 2 * fn.cast(digits[0] == _MINUS, dtype=types.INT32)
    return fn.cast(value * sign, dtype=types.INT32)
