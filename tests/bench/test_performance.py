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
