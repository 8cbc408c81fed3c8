import json
from pathlib import Path

import pytest

from benchmarks.learning import page, settings, study
from siamusic_fast.config import MelConfig, ProbeConfig, load_pretrain
from siamusic_fast.shards.manifest import ShardSet


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


def test_a_configuration_is_trained_once_and_its_figures_are_kept(
    shard_set: ShardSet, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured() -> study.Row:
        return study.scored("paper", 3, shard_set, tiny)

    study.keep("encoders", {("paper", None, 3): measured})
    kept = json.loads((study.RESULTS / "encoders.json").read_text())
    [row] = kept["rows"]
    config = load_pretrain(row["settings"])
    assert (config.aug, config.crops, config.seed, config.stem) == ("image", "same", 3, "standard")
    assert set(config.splits) == {"training", "validation"}
    assert row["training"]["steps"] >= 1
    assert set(row["measures"]) >= {"linear", "knn", "same_track"}
    monkeypatch.setattr(study, "pretrain", None)
    study.keep("encoders", {("paper", None, 3): measured})  # is there
    again = study.scored("paper", 3, shard_set, tiny)  # the run is there
    assert json.loads(json.dumps(again["measures"])) == row["measures"]


def test_the_page_says_what_the_results_say() -> None:
    text = page.page()
    assert page.PAGE.read_text(encoding="utf-8") == text
    rows = page.read("encoders")["rows"]
    assert {row["name"] for row in rows} == set(settings.CONFIGURATIONS)
    for name in settings.CONFIGURATIONS:
        of_name = [row["measures"]["linear"]["values"]["pretrained"] for row in rows if row["name"] == name]
        assert f"{sum(of_name) / len(of_name):.1%}" in text


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
