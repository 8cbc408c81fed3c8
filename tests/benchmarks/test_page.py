import json
from pathlib import Path

import pytest
from matplotlib import image

from benchmarks import page as script
from benchmarks.result import Result, Target
from siamusic_fast.bench.report import Measurement, Ratio, Report


def test_the_page_has_each_row_of_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    report = Report(
        title="Loader on cpu",
        settings={},
        measurements=(
            Measurement(
                name="crops",
                unit="tracks/s",
                windows=(4900.0, 5000.0, 5100.0),
                cpu_windows=(0.25,) * 3,
                setting="2 threads",
                extends="plan",
                limit=9000.0,
            ),
            Measurement(name="plan", unit="tracks/s", windows=(10_000.0,) * 3),
            Measurement(name="opening", unit="s", windows=(2.0,) * 3),
        ),
        ratios=(Ratio(name="CPU: A / B", windows=(0.6, 0.6, 0.6)),),
        notes=("a note",),
        machine={"cpu": "abacus", "cores": 2, "gpus": [], "torch": "2.0", "dali": "1.0"},
        date="2026-11-22",
        seconds=130.0,
    )
    targets = {
        "crops": Target(4000.0),
        "opening": Target(1.0, at_most=True),
        "CPU: A / B": Target(0.5, at_most=True),
    }
    for folder in ("abacus", "empty"):
        (tmp_path / folder).mkdir()
    document = Result(report=report, targets=targets).as_json()
    (tmp_path / "abacus" / "loader.json").write_text(json.dumps(document))
    (tmp_path / "abacus" / "notes.md").write_text("Bought in 1620.")
    lines = script.page().splitlines()
    assert "## abacus, 2 cores, no GPU (torch 2.0, DALI 1.0)" in lines
    assert "Bought in 1620." in lines
    assert "![Pairs per second by engine](../benchmarks/results/abacus/performance.png)" in lines
    assert "| crops (2 threads) | 5,000 | 4% | tracks/s | 0.10 | 0.25 | 9,000 | 4,000 | reached |" in lines
    assert "| opening | 2 | 0% | s |  |  |  | at most 1 | not reached |" in lines
    assert "| CPU: A / B | 0.60 | 0% | at most 0.5 | not reached |" in lines
    assert "- a note" in lines
    assert "<details><summary>Loader on cpu (2026-11-22, 2.2 min)</summary>" in lines


def row(name: str) -> Measurement:
    return Measurement(name=name, unit="pairs/s", windows=(1.0,))


@pytest.mark.parametrize(
    ("gpu", "batch_size", "codec", "missing"),
    [
        ("NVIDIA H200", 256, "wav", 5),
        ("NVIDIA H200", 64, "wav", 6),
        ("NVIDIA H200", 256, "flac", 6),
        ("NVIDIA A100", 256, "wav", 6),
    ],
)
def test_what_is_asked_of_an_h200_is_listed_until_it_is_measured_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: str,
    batch_size: int,
    codec: str,
    missing: int,
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    (tmp_path / "machine").mkdir()
    report = Report(
        title="Loader",
        settings={"batch_size": batch_size, "codec": codec, "device": "cuda"},
        measurements=(row("DALI: image"),),
        machine={"cpu": "abacus", "cores": 16, "gpus": [gpu], "torch": "2.0", "dali": "1.0"},
    )
    (tmp_path / "machine" / "loader.json").write_text(json.dumps(report.as_json()))
    page = script.page()
    assert page.count("\n| H200 | ") == missing
    assert ("`image`: at least 20,000 pairs/s" in page) == (missing == 6)
    assert "that resident batch: at least 3 times" in page


def test_the_table_of_what_is_not_measured_goes_with_its_last_row() -> None:
    settings = {"batch_size": 256, "codec": "wav", "backbone": "resnet50", "device": "cuda"}
    rows = tuple(row(name) for asked in script.ASKED for name in asked.rows)
    report = Report(title="All", settings=settings, measurements=rows, machine={"gpus": ["NVIDIA H200"]})
    assert script.not_measured([{"loader": Result(report=report), "train": Result(report=report)}]) == ""
    assert script.not_measured([]).count("| H200 |") == 6


def test_results_of_two_machines_in_one_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    (tmp_path / "abacus").mkdir()
    for name, torch in (("loader", "2.0"), ("train", "2.1")):
        report = Report(title=name, settings={}, measurements=(), machine={"cpu": "abacus", "torch": torch})
        (tmp_path / "abacus" / f"{name}.json").write_text(json.dumps(report.as_json()))
    with pytest.raises(SystemExit, match=r"abacus: loader.json and train.json differ in torch"):
        script.page()


def test_the_table_at_the_top_has_what_was_measured_with_limit_and_waiting() -> None:
    loader = Report(
        title="Loader",
        settings={},
        measurements=(Measurement(name="DALI: read", unit="pairs/s", windows=(10.0,), limit=20.0),),
    )
    fed = (row("train: DALI loader"), row("train: DALI loader, waiting for data"))
    train = Report(title="Training", settings={}, measurements=fed)
    results = {"loader": Result(report=loader), "train": Result(report=train)}
    assert script.summary(results).splitlines()[2:] == [
        "| reading crops | 10 | pairs/s | 20 |  |",
        "| training with the DALI loader | 1 | pairs/s |  | 1.0 % |",
    ]
    assert script.summary({"cluster": results["loader"]}) == ""
    assert not script.has_chart({"cluster": results["loader"]})
    assert len(script.SUMMARY) <= 10


def test_the_chart_has_a_bar_for_each_engine(tmp_path: Path) -> None:
    machine = {"cpu": "abacus", "cores": 2, "gpus": []}
    rows = (row("DALI: image"), row("torch: image"), row("paper: image"))
    report = Report(title="Loader", settings={}, measurements=rows, machine=machine)
    script.draw({"loader": Result(report=report)}, tmp_path / "chart.png")
    picture = image.imread(tmp_path / "chart.png")[..., :3]
    for engine in ("DALI", "torch", "paper"):
        color = [int(script._COLORS[engine][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert (abs(picture - color).max(axis=-1) < 0.01).sum() > 100
