"""Shard sets whose tracks can be told apart, and shard sets of given audio."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from tests.pipelines.helpers import RATE, Array


class PackAudio(Protocol):
    """Packs float arrays of samples at `rate` as tracks.

    They are training tracks without tags, each in a class of its own name, unless `splits`, `tags` and
    `genres` say otherwise; further settings are those of `PackConfig`.
    """

    def __call__(
        self,
        tracks: dict[str, Array],
        *,
        rate: int = RATE,
        genres: dict[str, str] | None = None,
        splits: dict[str, str] | None = None,
        tags: dict[str, tuple[str, ...]] | None = None,
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
        tags: dict[str, tuple[str, ...]] | None = None,
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
                    id=key,
                    path=f"{key}.wav",
                    split=(splits or {}).get(key, "training"),
                    genre=(genres or {}).get(key, key),
                    tags=(tags or {}).get(key, ()),
                )
                for key in tracks
            ),
        )
        config = {"min_seconds": 0.5, "tracks_per_shard": 10, "sample_rate": rate, **settings}
        with ThreadPoolExecutor(1) as executor:
            return pack(corpus, root / "shards", PackConfig(**config), executor=executor)

    return packed


def chord(samples: int, rng: np.random.Generator) -> Array:
    """Return tones that fade, with some noise: every band has something, and neither clips."""
    time = np.arange(samples) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(200, 6000, 4))
    return np.asarray(0.1 * tones * np.exp(-time) + 0.02 * rng.standard_normal(samples))


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
def uneven(pack_audio: PackAudio) -> ShardSet:
    """The tracks of `numbered` in shards of 10 and 10 (training), 2 (validation) and 1 (test)."""
    tracks = noises(23)
    splits = dict(zip(list(tracks)[20:], ("validation", "validation", "test"), strict=True))
    return pack_audio(tracks, splits=splits)


@pytest.fixture(scope="session")
def short_and_long(pack_audio: PackAudio) -> dict[str, ShardSet]:
    """Nine tracks of 0.3 to 2.1 s for crops of 1 s, by the codec that they are packed in."""
    rng = np.random.default_rng(0)
    lengths = [0.3, 0.5, 0.51, 0.95, 1.0, 1.3, 1.5, 1.8, 2.1]
    tracks = {f"{row:06d}": chord(round(s * RATE), rng) for row, s in enumerate(lengths)}
    return {
        codec: pack_audio(tracks, min_seconds=0.2, tracks_per_shard=4, codec=codec)
        for codec in ("wav", "flac", "ogg")
    }


@pytest.fixture(scope="session")
def many(pack_audio: PackAudio) -> ShardSet:
    """300 tracks of 0.3 to 0.6 s, one in each shard."""
    rng = np.random.default_rng(0)
    tracks = {f"{row:06d}": 0.1 * rng.standard_normal(6_615 + 22 * row) for row in range(300)}
    return pack_audio(tracks, min_seconds=0.2, tracks_per_shard=1)
