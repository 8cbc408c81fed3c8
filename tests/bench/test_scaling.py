import pytest
import torch

from siamusic_fast.bench import scaling
from siamusic_fast.bench.timing import Timing
from siamusic_fast.shards.manifest import ShardSet


def test_rates_openings_and_memory_are_reported(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_BATCHES", (4,))
    monkeypatch.setattr(scaling, "_DEALT", 20)
    monkeypatch.setattr(scaling, "_TRACKS_FOR_SHARDS", 2_000)
    monkeypatch.setattr(scaling, "cores", lambda: 2)
    found = scaling.measure(
        shard_set,
        recipe="none",
        batch_size=4,
        device=torch.device("cpu"),
        timing=Timing(windows=1, seconds=0.05),
        most_tracks=1_000,
        most_shards=10,
    )
    assert [one.name for one in found.measurements] == [
        *("DALI: 1 threads", "DALI: 2 threads", "DALI: batches of 4"),
        *("DALI: 1 shards of 1 s crops", "DALI: 10 shards of 1 s crops"),
        *("opening 1,000 tracks in 2 shards", "opening 1,000 tracks in 2 shards, memory"),
        *("opening 2,000 tracks in 1 shards", "opening 2,000 tracks in 1 shards, memory"),
        *("opening 2,000 tracks in 10 shards", "opening 2,000 tracks in 10 shards, memory"),
    ]
    assert {one.unit for one in found.measurements} == {"pairs/s", "s", "MiB"}
    assert all(one.median > 0 for one in found.measurements if one.unit != "MiB")
