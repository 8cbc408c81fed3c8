from pathlib import Path

import pytest

from benchmarks import opening
from benchmarks.opening import repeated_shards
from benchmarks.process import call_in_process
from benchmarks.sizing.opening import make_sets, open_set, seconds_per_file, store
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import TRACKS


def test_a_set_of_zeros_opens_as_many_tracks_as_it_says(tmp_path: Path) -> None:
    many, few = make_sets(tmp_path, 2_000, 240)
    assert (many / TRACKS).stat().st_size == 240 * 2_048
    found = open_set(str(many), str(few))
    assert 0 < found.seconds < found.first_batch
    assert found.memory >= 0


def test_a_file_gets_no_more_names_than_a_file_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_LINKS", 3)
    made = repeated_shards(tmp_path / "shards", 28, 4)
    tars = sorted((tmp_path / "shards").glob("*.tar"))
    assert [tar.stat().st_nlink for tar in tars] == [3, 3, 3, 3, 3, 3, 1]
    assert len({tar.stat().st_ino for tar in tars}) == 3
    assert len(open_tracks(made, ["training"])) == 28


def test_files_of_one_size_are_read_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("siamusic_fast.audio.scan._digest", lambda store, path, *_: read.append(path))
    for same_size in (False, True):
        read.clear()
        assert seconds_per_file(tmp_path / f"{same_size}", 5, same_size=same_size) > 0
        assert len(read) == (5 if same_size else 0)


def test_wav_takes_what_its_samples_and_headers_take(tmp_path: Path) -> None:
    found = store(make_corpus(tmp_path / "audio", 2, "wav", seconds=6.0), tmp_path / "shards", "wav")
    assert found.clips == 2
    assert found.hours == pytest.approx(12 / 3600)
    samples = 2 * 22_050 * 3.6e6 / 1e9  # of 1,000 hours, in GB
    assert samples < found.per_1000_hours < 1.05 * samples


@pytest.mark.slow
def test_ten_million_tracks_are_opened_in_a_gibibyte(tmp_path: Path) -> None:
    many, few = make_sets(tmp_path, 10_000_000, 240)
    assert call_in_process(open_set, folder=str(many), small=str(few)).memory < 1_024
