import dataclasses
import json
from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from matplotlib import image

from siamusic_fast.bench.chart import draw
from siamusic_fast.bench.compare import changes, differences
from siamusic_fast.bench.report import Measurement, Ratio, Report, added_ms, machine, read_report
from siamusic_fast.errors import DataError


def rates(name: str, *windows: float, unit: str = "pairs/s") -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows)


def report(*measurements: Measurement) -> Report:
    return Report(title="Loader", settings={"batch_size": 64}, measurements=measurements)


def test_the_median_and_spread_of_windows_are_those_worked_by_hand() -> None:
    found = rates("loader", 90.0, 130.0, 100.0, 100.0, 95.0)
    assert found.median == 100
    assert found.spread == pytest.approx(0.3)
    assert (found.low, found.high) == (70, 130)
    assert rates("loader", 90.0, 130.0, 100.0).spread == pytest.approx(0.6)  # too few to have seen it all


def test_a_ratio_is_taken_window_by_window() -> None:
    found = Ratio.of(rates("A", 10.0, 30.0, 40.0), rates("B", 10.0, 20.0, 20.0))
    assert found.windows == (1.0, 1.5, 2.0)
    assert found.median == 1.5


@pytest.mark.parametrize(
    ("windows", "target", "verdict"),
    [
        ((1.1, 1.1, 1.2, 1.15, 1.15), None, "more"),
        ((0.9, 0.8, 0.9, 0.85, 0.85), None, "less"),
        ((1.1, 1.1, 1.1, 1.1, 1.3), None, "no difference within the spread"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), None, "no difference within the spread"),
        ((1.31, 1.4, 1.4, 1.4, 1.45), 1.3, "reached"),
        ((1.0, 1.1, 1.1, 1.1, 1.2), 1.3, "not reached"),
        ((1.31, 1.31, 1.31, 1.31, 1.4), 1.3, "not certain within the spread"),
        ((1.36, 1.4, 1.44), 1.3, "reached"),
        ((1.31, 1.4, 1.45), 1.3, "not certain within the spread"),
        ((1.4, 1.4), 1.3, "too few windows"),
        ((1.4, 1.4), None, "too few windows"),
    ],
)
def test_a_verdict_needs_a_target_outside_the_spread(
    windows: tuple[float, ...], target: float | None, verdict: str
) -> None:
    assert Ratio(name="A / B", windows=windows, target=target).verdict == verdict


def test_less_is_better_where_a_target_is_the_most_that_is_allowed() -> None:
    ours = dataclasses.replace(rates("A", 1.0, 1.0, 1.0), cpu_windows=(1.0, 2.0, 3.0))
    theirs = dataclasses.replace(rates("B", 1.0, 1.0, 1.0), cpu_windows=(4.0, 4.0, 6.0))
    found = Ratio.of_cpu(ours, theirs, 0.5)
    assert found.windows == (0.25, 0.5, 0.5)
    assert found.verdict == "not certain within the spread"
    assert Ratio.of_cpu(ours, theirs, 1.0).verdict == "reached"
    assert Ratio.of_cpu(theirs, ours, 0.5).verdict == "not certain within the spread"
    assert dataclasses.replace(Ratio.of_cpu(theirs, ours), windows=(0.6, 0.6, 0.6), target=0.5).verdict == (
        "not reached"
    )


def test_a_measurement_has_a_verdict_if_it_has_a_target() -> None:
    found = rates("A", 90.0, 100.0, 110.0)
    assert found.verdict == ""
    assert dataclasses.replace(found, target=80.0).verdict == "reached"
    assert dataclasses.replace(found, target=95.0).verdict == "not certain within the spread"
    assert dataclasses.replace(found, target=120.0, at_most=True).verdict == "reached"
    assert dataclasses.replace(found, target=79.0, at_most=True).verdict == "not reached"


def test_a_report_comes_back_from_json() -> None:
    before = dataclasses.replace(
        report(
            dataclasses.replace(
                rates("loader", 90.0, 100.0),
                cpu_windows=(1.0, 3.0),
                setting="2 workers",
                ours=True,
                target=9.0,
                at_most=True,
            )
        ),
        ratios=(Ratio(name="A / B", windows=(1.0,), target=2.0, at_most=True),),
        limits={"loader": 200.0},
        notes=("a note",),
        befores={"loader": ""},
        seconds=12.5,
    )
    assert read_report(json.loads(json.dumps(before.as_json())), "x.json") == before


@pytest.mark.parametrize("document", [{}, {"format": "other"}, [], None])
def test_what_is_no_report_is_refused_by_name(document: object) -> None:
    with pytest.raises(DataError, match=r"x\.json is no result of a benchmark"):
        read_report(document, "x.json")  # type: ignore[arg-type]


def test_a_report_that_was_kept_before_there_were_further_fields_is_read() -> None:
    document = report(rates("loader", 90.0)).as_json()
    del document["results"][0]["at_most"], document["befores"], document["date"], document["seconds"]
    found = read_report(document, "x.json")
    assert (found.measurements[0].at_most, found.befores) == (False, {})
    assert (found.date, found.seconds) == ("", None)


def test_a_stage_adds_what_it_takes_longer_than_the_one_that_it_extends() -> None:
    stages = [rates("read", 1000.0), rates("crop", 500.0)]
    befores = {"read": "", "crop": "read"}
    assert added_ms(stages, "read", befores) == 1
    assert added_ms(stages, "crop", befores) == pytest.approx(1)


def test_a_report_without_windows_is_refused() -> None:
    document = report(rates("loader", 90.0)).as_json()
    document["results"][0]["windows"] = []
    with pytest.raises(DataError, match="loader has no windows"):
        read_report(document, "x.json")


def test_only_spreads_that_do_not_overlap_are_a_difference() -> None:
    before = report(
        rates("A", 100, 105, 105, 105, 110),
        rates("B", 100, 105, 105, 105, 110),
        rates("plan", 2.0, 2.2, 2.1, unit="s"),
        rates("few", 1.0, 1.0),
        rates("C", 1.0),
    )
    after = report(
        rates("A", 111, 115, 115, 115, 115),
        rates("B", 115, 115, 115, 115, 121),
        rates("plan", 1.0, 1.2, 1.1, unit="s"),
        rates("few", 2.0, 2.0, 2.0),
        rates("D", 1.0),
    )
    found = {one.name: one.verdict for one in changes(before, after)}
    assert found == {
        "A": "better",
        "B": "no difference within the spread",
        "plan": "better",
        "few": "too few windows",
    }
    with pytest.raises(DataError, match="no measurement in common"):
        changes(report(rates("A", 1.0)), report(rates("B", 1.0)))


def test_ratios_are_compared_and_another_number_of_workers_is_said() -> None:
    torch_peer = dataclasses.replace(rates("torch", 100, 100, 100), setting="1 workers")
    before = dataclasses.replace(
        report(torch_peer), ratios=(Ratio(name="CPU: A / B", windows=(1.0, 1.0, 1.0), at_most=True),)
    )
    after = dataclasses.replace(
        report(dataclasses.replace(torch_peer, setting="2 workers")),
        ratios=(Ratio(name="CPU: A / B", windows=(2.0, 2.0, 2.0), at_most=True),),
    )
    peer, ratio = changes(before, after)
    assert peer.note == "1 workers, then 2 workers"
    assert (ratio.ratio, ratio.verdict) == (2.0, "worse")


def test_other_settings_and_another_machine_are_said() -> None:
    before = report(rates("A", 1.0))
    after = dataclasses.replace(
        before, settings={"batch_size": 16}, hardware={**before.hardware, "cpu": "abacus"}
    )
    assert differences(before, before) == []
    assert differences(before, after) == [
        f"cpu: {before.hardware['cpu']}, then abacus",
        "batch_size: 64, then 16",
    ]


def test_the_chart_is_a_png_with_a_bar_as_long_as_its_rate(tmp_path: Path) -> None:
    ours = dataclasses.replace(rates("DALI: read", 50.0), ours=True)
    draw(report(ours, rates("torch", 100.0)), tmp_path / "new" / "chart.png")
    picture = image.imread(tmp_path / "new" / "chart.png")[..., :3]
    blue, gray = (
        (abs(picture - torch.tensor(color).numpy() / 255).max(axis=-1) < 0.01).any(axis=0).sum()
        for color in ([0x3B, 0x6E, 0xA5], [0xB0, 0xB4, 0xBA])
    )
    assert gray / blue == pytest.approx(2, rel=0.02)


def test_a_report_names_the_versions_that_the_figures_depend_on() -> None:
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert found["torchaudio"] == torchaudio.__version__.partition("+")[0]
    assert (found["soundfile"], found["cuda"]) == (soundfile.__version__, torch.version.cuda)
    total = Path("/proc/meminfo").read_text().split()[1]  # kB, less what the kernel took at its start
    assert found["memory_gib"] == pytest.approx(int(total) / 2**20, abs=1)


def test_a_report_names_the_driver_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine()["driver"] is None or torch.cuda.is_available()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ $1 = --query-gpu=driver_version ] && echo 580.82.07 && echo 580.82.07\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    found = machine()
    assert (found["gpus"], found["driver"]) == (["NVIDIA H200"] * 2, "580.82.07")
