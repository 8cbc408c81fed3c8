import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.learning import page, settings, study
from siamusic_fast.config import MelConfig, ProbeConfig, load_pretrain
from siamusic_fast.shards.tables import read_tracks
from tests.conftest import tone


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the study a matter of seconds, and keep its results in a folder of their own."""
    monkeypatch.setattr(settings, "MEL", MelConfig(seconds=0.5, n_mels=16, hop_length=512))
    monkeypatch.setattr(settings, "STEPS", 1)
    monkeypatch.setattr(settings, "BATCH_SIZE", 4)
    monkeypatch.setattr(settings, "PROBE", ProbeConfig(cv=1, retrieval_crops=2, backend="torch"))
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    study.RESULTS.mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled tracks by twelve artists, each in one split."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    lines = ["path,label,split,group"]
    for track in range(24):
        artist, label = track // 2, ("low", "high")[track // 2 % 2]
        split = "training" if artist < 6 else "validation" if artist < 9 else "test"
        lines.append(f"{track}.wav,{label},{split},artist {artist}")
        frequency = {"low": 200, "high": 800}[label] + 20 * artist
        soundfile.write(folder / f"{track}.wav", tone(6.0, frequency, 22_050, rng), 22_050)
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_an_encoder_is_trained_once_and_its_figures_are_kept(
    labelled: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = settings.Encoder("paper", seed=3, steps=1)
    wanted = [(asdict(encoder), lambda: study.scored(encoder, labelled, tiny))]
    study.keep("encoders", wanted)
    [row] = json.loads((study.RESULTS / "encoders.json").read_text())["rows"]
    config = load_pretrain(row["settings"])
    assert (config.aug, config.crops, config.seed, config.stem) == ("image", "same", 3, "standard")
    assert set(config.splits) == {"training", "validation"}
    assert row["training"]["steps"] >= 1
    assert set(row["measures"]) >= {"linear", "knn", "same_track"}
    monkeypatch.setattr(study, "pretrain", None)
    study.keep("encoders", wanted)  # is there
    again = study.scored(encoder, labelled, tiny)  # the run is there
    assert json.loads(json.dumps(again["measures"])) == row["measures"]


def test_fewer_tracks_are_drawn_of_those_for_learning(labelled: Path, tiny: Path) -> None:
    drawn, everything = study.packed(labelled, tiny, 5), study.packed(labelled, tiny)
    assert set(drawn.splits) <= set(study.SPLITS)
    assert drawn.tracks(tuple(drawn.splits)) == 5
    keys = {row.track_id for row in read_tracks(everything.folder) if row.split in study.SPLITS}
    assert {row.track_id for row in read_tracks(drawn.folder)} < keys


def test_the_page_says_what_the_results_say() -> None:
    text = page.page()
    assert page.PAGE.read_text(encoding="utf-8") == text
    rows = page.compared(page.read("encoders")["rows"])
    assert {row["name"] for row in rows} <= set(settings.CONFIGURATIONS)
    for name, of_name in page.by_name(rows).items():
        values = [row["measures"]["linear"]["values"]["pretrained"] for row in of_name]
        assert f"| **{name}** |" in text
        assert f"{sum(values) / len(values):.1%}" in text


def test_a_difference_that_is_not_shown_is_called_that() -> None:
    def row(low: float, high: float) -> page.Row:
        difference = {"difference": 0.05, "low": low, "high": high, "groups": 20}
        found = {"difference": difference, "strongest": "MFCCs"}
        return {"name": "music", "seed": 0, "measures": dict.fromkeys(page.MEASURES, found)}

    shown, not_shown = row(0.01, 0.09), row(-0.01, 0.11)
    assert "no difference shown" not in page.differences_table([shown])
    assert "no difference shown" in page.differences_table([not_shown])
    assert "above the strongest baseline from 1 of 2 seeds, below from 0" in page.verdict(
        [shown, not_shown], "music"
    )
