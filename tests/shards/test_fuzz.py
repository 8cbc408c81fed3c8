import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.audio.decode import REASONS
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.plan import Spans
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_rejects, read_tracks
from tests.shards.fuzzer import make_corpus


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(1000, 1, marks=pytest.mark.slow, id="1000 inputs")]
)
def test_damaged_inputs_are_all_accounted_for_and_what_is_packed_is_what_loaders_read(
    tmp_path: Path, count: int, seed: int
) -> None:
    (tmp_path / "audio").mkdir()
    corpus = make_corpus(tmp_path / "audio", count, seed)
    config = PackConfig(min_seconds=0.5, tracks_per_shard=32)
    shard_set = pack(corpus, tmp_path / "out", config, procs=2)

    packed = list(read_tracks(shard_set.folder))
    rejects = list(read_rejects(shard_set.folder))
    accounted = Counter([row.path for row in packed] + [row.path for row in rejects])
    assert accounted == Counter(track.path for track in corpus.tracks)
    reasons = {row.reason for row in rejects}
    assert reasons <= REASONS.keys()
    assert {"missing", "empty", "not-audio", "truncated", "duplicate"} <= reasons
    assert len(packed) > count / 4

    assert read_again(shard_set, [row.samples for row in packed]) == [row.sha256 for row in packed]


def read_again(shard_set: ShardSet, lengths: list[int]) -> list[str]:
    """Return the checksums of the samples, as loaders read them, in the order of the shards."""
    tracks = open_tracks(shard_set, list(shard_set.splits))
    reader = Reader(tracks, Frontend(mean=0.0, std=1.0))
    found = []
    for track, length in enumerate(lengths):
        pcm = np.empty((1, length), dtype=np.int16)
        whole = Spans(tracks=np.array([track]), starts=np.array([0]), samples=np.array([length]))
        reader.read(whole, slice(0, 1), pcm)
        found.append(hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest())
    reader.close()
    return found
