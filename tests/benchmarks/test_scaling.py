import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import opening, process, scaling
from benchmarks.opening import Opened, open_and_run, open_in_process, repeated_shards
from benchmarks.result import Result
from siamusic_fast.bench.report import Measurement
from siamusic_fast.bench.stages import prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.shards.manifest import ShardSet, read_manifest


def measure(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch, per_track: float = 0.001) -> Result:
    """Measure a little; start-up takes `per_track` seconds for each pair of tracks."""

    def opened(folder: Path, *, batch_size: int, loader_threads: int, **options: Any) -> Opened:
        tracks = read_manifest(folder).tracks(["training"])
        return Opened(
            start_up=1 + per_track * tracks**2,
            first_batch=1000.0,
            opening=5.0,
            running=2.0 * batch_size + loader_threads,
            grown=float(options["batches"]),
        )

    monkeypatch.setattr(scaling, "open_in_process", opened)
    monkeypatch.setattr(scaling, "_BATCHES", (2, 4))
    monkeypatch.setattr(scaling, "_DEALT", 30)
    monkeypatch.setattr(scaling, "_DEALT_SECONDS", 0.2)
    monkeypatch.setattr(scaling, "_TRACKS", (100, 1_000, 10_000))
    monkeypatch.setattr(scaling, "_TRACKS_FOR_SHARDS", 100)
    monkeypatch.setattr(scaling, "_PER_SHARD", 60)
    monkeypatch.setattr(scaling, "_RUN", 32)
    monkeypatch.setattr(scaling, "cores", lambda: 2)
    return scaling.measure(
        prepare(shard_set, batch_size=4, device=torch.device("cpu")),
        "none",
        Timing(windows=1, seconds=0.02),
        max_tracks=1_000,
        max_shards=10,
        long_run=7,
    )


def test_rates_openings_and_memory_are_of_the_sets_that_were_made(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(shard_set, monkeypatch).report
    names = [one.name for one in found.measurements]
    assert names[:5] == [
        *("DALI: 1 thread", "DALI: 2 threads", "DALI: batches of 2"),  # 24 tracks: too few for more
        *("DALI: 1 shard of 0.2 s crops", "DALI: 10 shards of 0.2 s crops"),
    ]
    assert names[5:-1:4] == [
        "start-up: 120 tracks in 2 shards",
        "start-up: 1,020 tracks in 17 shards",
        "start-up: 100 tracks in 1 shard",
        "start-up: 100 tracks in 10 shards",
        "start-up: 32 tracks in 16 shards, 1 thread, batches of 64",
        "start-up: 32 tracks in 16 shards, 2 threads, batches of 64",
        "start-up: 32 tracks in 16 shards, 2 threads, batches of 2",
        "start-up: 32 tracks in 16 shards, 2 threads, batches of 4",
    ]
    assert [one.unit for one in found.measurements[5:9]] == ["s", "s", "MiB", "MiB"]
    assert found.measurements[-2].windows == (10.0, 10.0, 10.0)
    assert (names[-1], found.measurements[-1].median) == ("memory added by 7 batches", 7.0)
    assert found.notes[-1] == "batches of 4 were left out: the 24 tracks do not fill 8 of them"


def test_what_grows_faster_than_it_should_is_named_with_its_first_step(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "_rates", lambda *arguments: ([], []))
    one, ten = (Measurement(name=f"{n}", unit="pairs/s", windows=(10.0 - n / 5,) * 3) for n in (1, 10))
    monkeypatch.setattr(scaling, "_dealt", lambda *arguments: [one, ten])
    result = measure(shard_set, monkeypatch)
    found, targets = result.report, result.targets
    ratios = {one.name: one for one in found.ratios}
    start_up = ratios["start-up: 1,020 tracks in 17 shards / start-up: 120 tracks in 2 shards"]
    assert targets[start_up.name].value == 10.2  # 1.2 times 1,020 / 120
    assert start_up.median == pytest.approx((1 + 0.001 * 1_020**2) / (1 + 0.001 * 120**2))
    assert (targets[start_up.name].at_most, result.verdict(start_up)) == (True, "not reached")
    memory = ratios["memory of opening: 100 tracks in 10 shards / memory of opening: 100 tracks in 1 shard"]
    assert (memory.median, targets[memory.name].value, result.verdict(memory)) == (1.0, 12.0, "reached")
    assert (targets["10 / 1"].value, result.verdict(ratios["10 / 1"])) == (0.9, "not reached")
    assert found.notes[0] == "start-up grows faster than it should from 120 tracks to 1,020: 68 times"
    assert measure(shard_set, monkeypatch, per_track=0).report.notes[0] == scaling._NOWHERE


def test_the_memory_of_a_running_loader_grows_with_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_MIN_PAIRS", 64)
    repeated_shards(tmp_path / "shards", 64, 64, seconds=4.0)
    few, many = (
        open_and_run(str(tmp_path / "shards"), aug="none", seconds=4.0, batch_size=size) for size in (2, 64)
    )
    assert min(*dataclasses.astuple(few), *dataclasses.astuple(many)) > 0
    assert few.start_up < few.first_batch
    assert many.running > few.running + 64 * 2 * 4 * 48 * 300 / 2**20  # two views of 48 mels and 345 frames


def test_shards_are_full_and_hold_at_least_the_tracks_asked_for(tmp_path: Path) -> None:
    made = repeated_shards(tmp_path / "shards", 9, 4)
    assert (made.tracks(["training"]), len(made.splits["training"])) == (12, 3)


def test_why_an_opening_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", "raise ValueError('no memory left')")
    with pytest.raises(RuntimeError, match="no memory left"):
        open_in_process(tmp_path)
