"""How long it takes until a loader over very many tracks can be asked for its first batch."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.manifest import Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.plan import Track
from siamusic_fast.shards.tables import write_rejects, write_tracks
from siamusic_fast.shards.writer import Sample, Storage, write_shard

_RATE = 22_050
_SAMPLES = _RATE // 10
"""Of each track: a tenth of a second, since opening reads no audio."""


def opening_seconds(folder: Path, tracks: int, tracks_per_shard: int = 512) -> float:
    """Return how long opening about `tracks` tracks takes, which are made in the new folder `folder`."""
    repeated_shards(folder, tracks, tracks_per_shard)
    return open_seconds(folder)


def open_seconds(folder: Path) -> float:
    """Return how long reading the manifest in `folder` and building a loader takes."""
    started = time.perf_counter()
    shard_set = read_manifest(folder)
    mel = MelConfig(seconds=_SAMPLES / shard_set.sample_rate)
    with TwoViewLoader(shard_set, mel=mel, normalisation=Normalisation(0.0, 1.0)):
        return time.perf_counter() - started


def repeated_shards(folder: Path, tracks: int, tracks_per_shard: int = 512) -> ShardSet:
    """Make shards of about `tracks` tracks in the new folder `folder`: one file under many names."""
    count = max(1, round(tracks / tracks_per_shard))
    folder.mkdir()
    pcm = np.random.default_rng(0).integers(-1000, 1000, _SAMPLES).astype(np.int16)
    samples = [
        Sample(f"{n:06d}", Track(f"{n:06d}", f"{n:06d}.mp3", "training", "Folk"), 0, pcm)
        for n in range(tracks_per_shard)
    ]
    first = write_shard(folder, "training-000000", samples, storage=Storage(sample_rate=_RATE), labelled=True)
    shards = [first, *(_link(folder, first, number) for number in range(1, count))]
    shard_set = ShardSet(
        folder=folder,
        source="repeated",
        codec="wav",
        sample_rate=_RATE,
        classes=("Folk",),
        seed=0,
        min_seconds=0.0,
        splits={"training": tuple(shards)},
        rejected={},
    )
    write_tracks(folder, [])
    write_rejects(folder, [])
    write_manifest(shard_set)
    return shard_set


def _link(folder: Path, shard: Shard, number: int) -> Shard:
    copy = dataclasses.replace(shard, file=f"training-{number:06d}.tar", index=f"training-{number:06d}.idx")
    os.link(folder / shard.file, folder / copy.file)
    os.link(folder / shard.index, folder / copy.index)
    return copy
