import dataclasses
from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from matplotlib import image

from siamusic_fast.bench.chart import draw
from siamusic_fast.bench.report import Measurement, Ratio, Report, added_ms, describe_machine


def rates(name: str, *windows: float, unit: str = "pairs/s") -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows)


def report(*measurements: Measurement) -> Report:
    return Report(title="Loader", settings={"batch_size": 64}, measurements=measurements)


def test_the_median_and_spread_of_windows_are_those_worked_by_hand() -> None:
    found = rates("loader", 90.0, 130.0, 100.0, 100.0, 95.0)
    assert found.median == 100
    assert found.spread == pytest.approx(0.3)
    assert found.distance == 30
    assert rates("loader", 90.0, 130.0, 100.0).spread == pytest.approx(0.6)  # too few to have seen it all


def test_a_ratio_is_taken_window_by_window() -> None:
    found = Ratio.of(rates("A", 10.0, 30.0, 40.0), rates("B", 10.0, 20.0, 20.0))
    assert found.windows == (1.0, 1.5, 2.0)
    assert found.median == 1.5


def test_a_stage_adds_what_it_takes_longer_than_the_one_that_it_extends() -> None:
    read, crop = rates("read", 1000.0), dataclasses.replace(rates("crop", 500.0), extends="read")
    assert added_ms([read, crop], crop) == pytest.approx(1)


def test_the_chart_is_a_png_with_a_bar_as_long_as_its_rate(tmp_path: Path) -> None:
    ours = dataclasses.replace(rates("DALI: read", 50.0), ours=True)
    draw(report(ours, rates("torch", 100.0)), tmp_path / "new" / "chart.png")
    picture = image.imread(tmp_path / "new" / "chart.png")[..., :3]
    blue, gray = (
        (abs(picture - torch.tensor(color).numpy() / 255).max(axis=-1) < 0.01).any(axis=0).sum()
        for color in ([0x3B, 0x6E, 0xA5], [0xB0, 0xB4, 0xBA])
    )
    assert gray / blue == pytest.approx(2, rel=0.02)


def test_a_chart_has_at_most_eight_bars_of_one_unit(tmp_path: Path) -> None:
    many = [rates(f"stage {number}", 1.0) for number in range(9)]
    for name, found in (
        ("nine", report(*many, rates("memory", 1.0, unit="GB/s"))),
        ("eight", report(*many[:8])),
    ):
        draw(found, tmp_path / f"{name}.png")
    assert (tmp_path / "nine.png").read_bytes() == (tmp_path / "eight.png").read_bytes()


def test_a_report_names_the_versions_that_the_figures_depend_on() -> None:
    found = describe_machine()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert found["torchaudio"] == torchaudio.__version__.partition("+")[0]
    assert (found["soundfile"], found["cuda"]) == (soundfile.__version__, torch.version.cuda)
    total = Path("/proc/meminfo").read_text().split()[1]  # kB, less what the kernel took at its start
    assert found["memory_gib"] == pytest.approx(int(total) / 2**20, abs=1)


def test_a_report_names_the_driver_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_machine()["driver"] is None or torch.cuda.is_available()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ $1 = --query-gpu=driver_version ] && echo 580.82.07 && echo 580.82.07\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    found = describe_machine()
    assert (found["gpus"], found["driver"]) == (["NVIDIA H200"] * 2, "580.82.07")
