import dataclasses
import json
from pathlib import Path

import pytest
import torch
from matplotlib import image

from siamusic_fast.bench.chart import draw
from siamusic_fast.bench.compare import changes
from siamusic_fast.bench.report import Measurement, Ratio, Report, machine, read_report
from siamusic_fast.errors import DataError


def rates(name: str, *windows: float, unit: str = "pairs/s") -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows)


def report(*measurements: Measurement) -> Report:
    return Report(title="Loader", settings={"batch_size": 64}, measurements=measurements)


def test_the_median_and_spread_of_windows_are_those_worked_by_hand() -> None:
    found = rates("loader", 90.0, 130.0, 100.0)
    assert found.median == 100
    assert found.spread == pytest.approx(0.2)


def test_a_ratio_is_taken_window_by_window() -> None:
    found = Ratio.of(rates("A", 10.0, 30.0, 40.0), rates("B", 10.0, 20.0, 20.0))
    assert found.windows == (1.0, 1.5, 2.0)
    assert found.median == 1.5


@pytest.mark.parametrize(
    ("windows", "target", "verdict"),
    [
        ((1.1, 1.2), None, "more"),
        ((0.8, 0.9), None, "less"),
        ((0.9, 1.2), None, "no difference within the spread"),
        ((1.3, 1.5), 1.3, "reached"),
        ((1.0, 1.2), 1.3, "not reached"),
        ((1.2, 1.4), 1.3, "not certain within the spread"),
    ],
)
def test_a_verdict_needs_all_windows_on_one_side(
    windows: tuple[float, ...], target: float | None, verdict: str
) -> None:
    assert Ratio(name="A / B", windows=windows, target=target).verdict == verdict


def test_a_report_comes_back_from_json() -> None:
    before = dataclasses.replace(
        report(rates("loader", 90.0, 100.0)),
        ratios=(Ratio(name="A / B", windows=(1.0,), target=2.0),),
        limits={"loader": 200.0},
        notes=("a note",),
    )
    assert read_report(json.loads(json.dumps(before.as_json())), "x.json") == before


@pytest.mark.parametrize("document", [{}, {"format": "other"}, [], None])
def test_what_is_no_report_is_refused_by_name(document: object) -> None:
    with pytest.raises(DataError, match=r"x\.json is no result of a benchmark"):
        read_report(document, "x.json")  # type: ignore[arg-type]


def test_only_windows_that_do_not_overlap_are_a_difference() -> None:
    before = report(
        rates("A", 100, 110), rates("B", 100, 110), rates("plan", 2.0, 2.2, unit="s"), rates("C", 1.0)
    )
    after = report(
        rates("A", 111, 120), rates("B", 109, 120), rates("plan", 1.0, 1.2, unit="s"), rates("D", 1.0)
    )
    found = {one.name: one.verdict for one in changes(before, after)}
    assert found == {"A": "better", "B": "no difference within the spread", "plan": "better"}
    with pytest.raises(DataError, match="no measurement in common"):
        changes(report(rates("A", 1.0)), report(rates("B", 1.0)))


def test_the_chart_is_a_png_with_a_bar_as_long_as_its_rate(tmp_path: Path) -> None:
    draw(report(rates("DALI: read", 50.0), rates("torch", 100.0)), tmp_path / "new" / "chart.png")
    picture = image.imread(tmp_path / "new" / "chart.png")[..., :3]
    blue, grey = (
        (abs(picture - torch.tensor(colour).numpy() / 255).max(axis=-1) < 0.01).any(axis=0).sum()
        for colour in ([0x3B, 0x6E, 0xA5], [0xB0, 0xB4, 0xBA])
    )
    assert grey / blue == pytest.approx(2, rel=0.02)


def test_a_report_names_the_versions_that_the_figures_depend_on() -> None:
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
