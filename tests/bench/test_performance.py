import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from siamusic_fast.bench.report import Measurement, Ratio, Report

SCRIPT = Path(__file__).parents[2] / "scripts" / "performance.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("performance", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_each_row_of_each_machine(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
                setting="2 workers",
                target=4000.0,
            ),
            Measurement(name="opening", unit="s", windows=(2.0,) * 3, target=1.0, at_most=True),
        ),
        ratios=(Ratio(name="CPU: A / B", windows=(0.6, 0.6, 0.6), target=0.5, at_most=True),),
        limits={"crops": 9000.0},
        notes=("a note",),
        befores={"crops": ""},
        hardware={"cpu": "abacus", "cores": 2, "gpus": [], "torch": "2.0", "dali": "1.0"},
        date="2026-11-22",
        seconds=130.0,
    )
    for folder in ("abacus", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "abacus" / "loader.json").write_text(json.dumps(report.as_json()))
    (tmp_path / "abacus" / "notes.md").write_text("Bought in 1620.")
    lines = script.page().splitlines()
    assert "## abacus, 2 cores, no GPU (torch 2.0, DALI 1.0)" in lines
    assert "Bought in 1620." in lines
    assert "![Loader on cpu](../benchmarks/results/abacus/loader.png)" in lines
    assert "| crops (2 workers) | 5,000 | 4% | tracks/s | 0.20 | 0.25 | 9,000 | 4,000 | reached |" in lines
    assert "| opening | 2 | 0% | s |  |  |  | at most 1 | not reached |" in lines
    assert "| CPU: A / B | 0.60 | 0% | at most 0.5 | not reached |" in lines
    assert "- a note" in lines
    assert "Measured on 2026-11-22, taking 2.2 min." in lines


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
    script: ModuleType,
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
        measurements=(row("DALI: recipe image"),),
        hardware={"cpu": "abacus", "cores": 16, "gpus": [gpu], "torch": "2.0", "dali": "1.0"},
    )
    (tmp_path / "machine" / "loader.json").write_text(json.dumps(report.as_json()))
    page = script.page()
    assert page.count("\n| H200 | ") == missing
    assert ("recipe image: at least 20,000 pairs/s" in page) == (missing == 6)
    assert "that resident batch: at least 3 times" in page


def test_the_table_of_what_is_not_measured_goes_with_its_last_row(script: ModuleType) -> None:
    settings = {"batch_size": 256, "codec": "wav", "backbone": "resnet50", "device": "cuda"}
    rows = tuple(row(name) for asked in script.ASKED for name in asked.rows)
    report = Report(title="All", settings=settings, measurements=rows, hardware={"gpus": ["NVIDIA H200"]})
    assert script.not_measured([{"loader": report, "train": report}]) == ""
    assert script.not_measured([]).count("| H200 |") == 6


def test_results_of_two_machines_in_one_folder_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    (tmp_path / "abacus").mkdir()
    for name, torch in (("loader", "2.0"), ("train", "2.1")):
        report = Report(title=name, settings={}, measurements=(), hardware={"cpu": "abacus", "torch": torch})
        (tmp_path / "abacus" / f"{name}.json").write_text(json.dumps(report.as_json()))
    with pytest.raises(SystemExit, match=r"abacus: loader.json and train.json differ in torch"):
        script.page()
