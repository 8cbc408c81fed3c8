import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nvidia.dali import fn, pipeline_def

from siamusic_fast.shards.codec import WAV_HEADER
from siamusic_fast.shards.decode import REASONS
from siamusic_fast.shards.manifest import Shard, ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_rejects, read_tracks
from tests.shards.fuzzer import make_corpus


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(1000, 1, marks=pytest.mark.slow, id="1000 inputs")]
)
def test_damaged_inputs_are_all_accounted_for_and_what_is_packed_decodes_in_dali(
    tmp_path: Path, count: int, seed: int
) -> None:
    (tmp_path / "audio").mkdir()
    corpus = make_corpus(tmp_path / "audio", count, seed)
    config = PackConfig(min_seconds=0.5, tracks_per_shard=32)
    shard_set = pack(corpus, tmp_path / "out", config, workers=2)

    packed = list(read_tracks(shard_set.folder))
    rejects = list(read_rejects(shard_set.folder))
    accounted = Counter([row.path for row in packed] + [row.path for row in rejects])
    assert accounted == Counter(track.path for track in corpus.tracks)
    reasons = {row.reason for row in rejects}
    assert reasons <= REASONS.keys()
    assert {"missing", "empty", "not-audio", "truncated", "duplicate"} <= reasons
    assert len(packed) > count / 4

    assert read_with_dali(shard_set) == [row.sha256 for row in packed]


def read_with_dali(shard_set: ShardSet) -> list[str]:
    """Return the checksums of the samples, as DALI gives them, in the order of the shards."""
    sums = []
    for shard in shard_set.shards(list(shard_set.splits)):

        @pipeline_def(batch_size=shard.tracks, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
        def whole_files(shard: Shard = shard) -> Any:
            paths, indices = [str(shard_set.path(shard.file))], [str(shard_set.path(shard.index))]
            return fn.readers.webdataset(paths=paths, index_paths=indices, ext=["wav"])

        (batch,) = whole_files().run()
        sums += [hashlib.sha256(batch.at(n)[WAV_HEADER:].tobytes()).hexdigest() for n in range(shard.tracks)]
    return sums
