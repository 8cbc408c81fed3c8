import pytest

from benchmarks.process import call_in_process
from benchmarks.sizing.packing import imagined_corpus, pack_without_audio, plan
from siamusic_fast.shards.pack import PackConfig
from siamusic_fast.shards.plan import plan_shards


def test_tables_and_manifest_grow_with_tracks_and_shards() -> None:
    few, many = pack_without_audio(1_000), pack_without_audio(3_000)
    assert (few.shards, many.shards) == (2, 6)
    assert 3 * few.table_bytes == pytest.approx(many.table_bytes, rel=0.02)
    assert (many.manifest_bytes - few.manifest_bytes) / 4 == pytest.approx(400, rel=0.05)
    assert 200 < many.table_bytes / 3_000 < 280
    assert min(few.tables, many.tables) > 0


def test_a_large_corpus_is_planned_into_full_shards_without_gaps() -> None:
    corpus = imagined_corpus(20_000)
    plans = plan_shards(corpus.tracks, tracks_per_shard=PackConfig.tracks_per_shard, seed=0)
    assert [plan.stem for plan in plans] == [f"training-{number:06d}" for number in range(40)]
    assert {len(plan.tracks) for plan in plans} == {500}
    assert len({track.path for plan in plans for track in plan.tracks}) == 20_000


def test_a_plan_takes_few_bytes_of_a_track() -> None:
    few, many = (call_in_process(plan, tracks=count) for count in (20_000, 100_000))
    assert many.memory - few.memory < 80_000 * 400 / 2**20


@pytest.mark.slow
def test_ten_million_tracks_are_planned_in_4_gib() -> None:
    assert call_in_process(plan, tracks=10_000_000).memory < 4_096
