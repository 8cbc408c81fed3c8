"""Shard sets whose tracks can be told apart, and shard sets of given audio."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.plan import Corpus, Track
from tests.pipelines.graphs import Array

RATE = 22_050

PackAudio = Callable[[dict[str, Array]], ShardSet]


@pytest.fixture(scope="session")
def pack_audio(tmp_path_factory: pytest.TempPathFactory) -> PackAudio:
    """A function that packs float arrays at 22,050 Hz as training tracks, each in a class of its own name."""

    def packed(tracks: dict[str, Array]) -> ShardSet:
        root = tmp_path_factory.mktemp("audio")
        for key, audio in tracks.items():
            soundfile.write(root / f"{key}.wav", audio, RATE, subtype="FLOAT")
        corpus = Corpus(
            name="tones",
            folder=root,
            tracks=tuple(Track(key=key, path=f"{key}.wav", split="training", genre=key) for key in tracks),
        )
        config = PackConfig(min_seconds=0.5, tracks_per_shard=10)
        return pack(corpus, root / "shards", config, workers=1)

    return packed


@pytest.fixture(scope="session")
def numbered(pack_audio: PackAudio) -> ShardSet:
    """23 tracks of 1 to 2 s in three shards; the label of each is its number."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(RATE, 2 * RATE, size=23)
    return pack_audio({f"{i:06d}": 0.1 * rng.standard_normal(n) for i, n in enumerate(lengths)})


@pytest.fixture(scope="session")
def pcm(numbered: ShardSet) -> dict[int, Path]:
    """The audio files behind `numbered`, by label."""
    return {i: numbered.folder.parent / f"{i:06d}.wav" for i in range(23)}
