"""A shard set of a few short tracks, to be damaged, and its manifest, to be made to fit the damage."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.shards.manifest import Shard, ShardSet
from siamusic_fast.shards.pack import PackConfig, pack

RATE = 22_050
GENRES = ("Folk", "Rock", "Jazz")


def pack_small(folder: Path, codec: str = "wav", prefix: str = "a") -> ShardSet:
    """Pack 8 tracks of 0.1 s in `folder`: two shards with 3 each, and one with 2 that have no class."""
    audio = folder / "music"
    audio.mkdir(parents=True)
    rng = np.random.default_rng(0)
    tracks = []
    for number in range(8):
        name = f"{prefix}{number:05d}"
        soundfile.write(audio / f"{name}.wav", rng.uniform(-0.5, 0.5, 2205), RATE)
        tracks.append(Track(name, f"{name}.wav", "training", GENRES[number % 3] if number < 6 else ""))
    corpus = Corpus(name="small", folder=audio, tracks=tuple(tracks))
    config = PackConfig(codec=codec, min_seconds=0.1, tracks_per_shard=3)
    return pack(corpus, folder / "set", config, procs=1)


def fit_index(shard_set: ShardSet, shard: Shard, text: bytes) -> Shard:
    """Replace the index of `shard` by `text`; return `shard` as a manifest made for that would have it."""
    shard_set.path(shard.index).write_bytes(text)
    return dataclasses.replace(shard, index_sha256=hashlib.sha256(text).hexdigest())


def fit_tracks(shard_set: ShardSet, text: bytes) -> ShardSet:
    """Replace tracks.csv by `text`; return the shard set as a manifest made for that would have it."""
    path = shard_set.path("tracks.csv")
    path.write_bytes(text)
    tables = {**shard_set.tables, "tracks.csv": hashlib.sha256(text).hexdigest()}
    return dataclasses.replace(shard_set, tables=tables)
