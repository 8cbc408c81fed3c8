from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile

from siamusic_fast.audio.scan import scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.bench import shard
from siamusic_fast.bench.shard import _at_scale, _limit, measure, synthesize
from siamusic_fast.errors import ConfigError


def test_a_corpus_of_our_own_has_whole_clips_and_no_duplicates(tmp_path: Path) -> None:
    corpus = synthesize(tmp_path / "audio", 3, seconds=3)
    assert len(scan(corpus, open_store(corpus.folder)).tracks) == 3
    for track in corpus.tracks:
        information = soundfile.info(corpus.folder / track.path)
        assert (information.samplerate, information.channels) == (44_100, 2)
        assert information.duration == pytest.approx(3, abs=0.1)


def test_rates_ratios_and_the_peer_are_reported(tmp_path: Path) -> None:
    corpus = synthesize(tmp_path / "audio", 2, seconds=6)
    found = measure(corpus, procs=1, windows=1, planned=1000)
    of = {one.name: one for one in found.measurements}
    assert {one.unit for one in of.values()} == {"tracks/s", "MB/s", "s", "MiB"}
    assert all(one.median > 0 for one in of.values())
    assert {"plan of 1,000 tracks, time", "opening 1,000 tracks"} <= set(of)
    script, packer = of["obvious script"], of["packer, from start to end"]
    ratios = {one.name: one.median for one in found.ratios}
    assert ratios[f"{packer.name} / {script.name}"] == packer.median / script.median
    limit = of["limit: cores / CPU seconds of decoding and resampling"].median
    assert found.limits == dict.fromkeys([one for one in of if one.startswith("packer")], limit)
    assert "numpy.save" in found.notes[0]
    assert found.settings["tracks"] == 2
    assert of["opening 1,000 tracks"].target is None
    summed = next(one for one in found.ratios if "sha256sum" in one.name)
    assert summed.target == 0.5


def test_more_workers_than_cores_raise_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_cpu_seconds", lambda paths: 0.5)
    monkeypatch.setattr(shard, "cores", lambda: 2)
    with ThreadPoolExecutor(8) as decoders:
        assert [_limit(decoders, procs, []) for procs in (1, 2, 8)] == [2, 4, 4]


@pytest.mark.parametrize(("fewest", "target"), [(2, 0.85), (3, None)])
def test_packing_from_start_to_end_is_judged_unless_the_tracks_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int, target: float | None
) -> None:
    monkeypatch.setattr(shard, "_FEWEST_TRACKS", fewest)
    found = measure(synthesize(tmp_path / "audio", 2, seconds=6), procs=1, windows=1, planned=1000)
    start_to_end, running = (
        next(one for one in found.ratios if one.name.startswith(f"{packer} / limit"))
        for packer in ("packer, from start to end", "packer, workers running")
    )
    assert (start_to_end.target, running.target) == (target, 0.85)


def test_plan_and_opening_of_a_million_tracks_have_limits() -> None:
    limited = _at_scale("plan", "s", (3.0, 4.0, 5.0), 1_000_000, 20.0)
    assert (limited.target, limited.at_most, limited.verdict) == (20.0, True, "reached")
    assert _at_scale("plan", "s", (30.0, 31.0, 32.0), 1_000_000, 20.0).verdict == "not reached"


def test_no_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="windows = 0"):
        measure(windows=0)
