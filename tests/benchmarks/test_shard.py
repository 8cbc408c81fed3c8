from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import shard
from benchmarks.shard import DECODING, decoding_limit, measure, script_rate
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import named
from siamusic_fast.bench.shard import PACKING, RUNNING


@pytest.mark.parametrize(("min_tracks", "target"), [(2, 0.85), (3, None)])
def test_peers_and_scale_are_measured_and_few_tracks_are_not_judged(
    monkeypatch: pytest.MonkeyPatch, min_tracks: int, target: float | None
) -> None:
    monkeypatch.setattr(shard, "_MIN_TRACKS", min_tracks)
    result = measure(tracks=2, windows=1, planned=1000)
    found, targets = result.report.measurements, result.targets
    assert {one.unit for one in found} == {"tracks/s", "MB/s", "s", "MiB"}
    assert all(one.median > 0 for one in found)
    assert {"plan of 1,000 tracks, time", "opening 1,000 tracks"} <= {one.name for one in found}
    beside = f"{PACKING}, beside the script"
    ratio = next(one for one in result.report.ratios if one.name == f"{beside} / plain script")
    assert ratio.median == named(found, beside).median / named(found, "plain script").median
    ratios = {one.name: one.median for one in result.report.ratios}
    assert ratios[f"{PACKING} / {DECODING}"] == named(found, PACKING).median / named(found, DECODING).median
    assert named(found, PACKING).limit == named(found, RUNNING).limit == named(found, DECODING).median
    assert "numpy.save" in result.report.notes[0]
    asked = targets.get(f"{PACKING} / {DECODING}")
    assert (asked and asked.value, targets[f"{RUNNING} / {DECODING}"].value) == (target, 0.85)
    assert targets["verifying, beside sha256sum / sha256sum"].value == 0.5
    assert "opening 1,000 tracks" not in targets


def test_plan_and_opening_of_a_million_tracks_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "AT_SCALE", 1000)
    targets = measure(tracks=1, windows=1, planned=1000).targets
    limits = {name: (one.value, one.at_most) for name, one in targets.items() if "1,000 tracks" in name}
    assert limits == {
        "plan of 1,000 tracks, time": (20.0, True),
        "plan of 1,000 tracks, memory": (1024.0, True),
        "opening 1,000 tracks": (5.0, True),
    }


def test_the_script_saves_each_track(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "audio", 2, "mp3", seconds=2)
    paths = [Path(corpus.folder, track.path) for track in corpus.tracks]
    assert script_rate(paths, tmp_path / "script") > 0
    assert sorted(path.name for path in (tmp_path / "script").iterdir()) == ["000000.npy", "000001.npy"]


def test_more_processes_than_cores_raise_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_cpu_seconds", lambda paths: 0.5)
    monkeypatch.setattr(shard, "cores", lambda: 2)
    with ThreadPoolExecutor(8) as decoders:
        assert [decoding_limit(decoders, procs, []) for procs in (1, 2, 8)] == [2, 4, 4]
