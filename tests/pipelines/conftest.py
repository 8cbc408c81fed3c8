"""Shard sets whose tracks can be told apart, and shard sets of given audio."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import soundfile

from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.plan import Corpus, Track
from tests.pipelines.graphs import Array

RATE = 22_050


class PackAudio(Protocol):
    """Packs float arrays of samples at `rate` as tracks.

    They are training tracks, each in a class of its own name, unless `splits` and `genres` say otherwise;
    further settings are those of `PackConfig`.
    """

    def __call__(
        self,
        tracks: dict[str, Array],
        *,
        rate: int = RATE,
        genres: dict[str, str] | None = None,
        splits: dict[str, str] | None = None,
        **settings: Any,
    ) -> ShardSet: ...


@pytest.fixture(scope="session")
def pack_audio(tmp_path_factory: pytest.TempPathFactory) -> PackAudio:
    """A function that packs given audio."""

    def packed(
        tracks: dict[str, Array],
        *,
        rate: int = RATE,
        genres: dict[str, str] | None = None,
        splits: dict[str, str] | None = None,
        **settings: Any,
    ) -> ShardSet:
        root = tmp_path_factory.mktemp("audio")
        for key, audio in tracks.items():
            soundfile.write(root / f"{key}.wav", audio, rate, subtype="FLOAT")
        corpus = Corpus(
            name="tones",
            folder=root,
            tracks=tuple(
                Track(
                    key=key,
                    path=f"{key}.wav",
                    split=(splits or {}).get(key, "training"),
                    genre=(genres or {}).get(key, key),
                )
                for key in tracks
            ),
        )
        config = {"min_seconds": 0.5, "tracks_per_shard": 10, "sample_rate": rate, **settings}
        return pack(corpus, root / "shards", PackConfig(**config), workers=1)

    return packed


def noises(count: int) -> dict[str, Array]:
    """Return `count` tracks of white noise, 1 to 2 s each, by their numbers."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(RATE, 2 * RATE, size=count)
    return {f"{i:06d}": 0.1 * rng.standard_normal(n) for i, n in enumerate(lengths)}


@pytest.fixture(scope="session")
def numbered(pack_audio: PackAudio) -> ShardSet:
    """23 tracks of 1 to 2 s in three shards; the label of each is its number."""
    return pack_audio(noises(23))


@pytest.fixture(scope="session")
def numbered_flac(pack_audio: PackAudio) -> ShardSet:
    """The tracks of `numbered` in flac."""
    return pack_audio(noises(23), codec="flac")


@pytest.fixture(scope="session")
def uneven(pack_audio: PackAudio) -> ShardSet:
    """The tracks of `numbered` in shards of 10 and 10 (training), 2 (validation) and 1 (test)."""
    tracks = noises(23)
    splits = dict(zip(list(tracks)[20:], ("validation", "validation", "test"), strict=True))
    return pack_audio(tracks, splits=splits)


@pytest.fixture(scope="session")
def pcm(numbered: ShardSet) -> dict[int, Path]:
    """The audio files behind `numbered`, by label."""
    return {i: numbered.folder.parent / f"{i:06d}.wav" for i in range(23)}
