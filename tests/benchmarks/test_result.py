import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import changes, differences
from benchmarks.result import Result, Target, cpu_ratio, keep, read
from benchmarks.result import verdict as verdict_on
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.cli.console import output
from siamusic_fast.errors import DataError


def rates(name: str, *windows: float, unit: str = "pairs/s") -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows)


def report(*measurements: Measurement) -> Report:
    return Report(title="Loader", settings={"batch_size": 64}, measurements=measurements)


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
    one = Ratio(name="A / B", windows=windows)
    assert verdict_on(one, None if target is None else Target(target)) == verdict


def test_less_is_better_where_a_target_is_the_most_that_is_allowed() -> None:
    ours = dataclasses.replace(rates("A", 1.0, 1.0, 1.0), cpu_windows=(1.0, 2.0, 3.0))
    theirs = dataclasses.replace(rates("B", 1.0, 1.0, 1.0), cpu_windows=(4.0, 4.0, 6.0))
    found = cpu_ratio(ours, theirs)
    assert found.windows == (0.25, 0.5, 0.5)
    half = Target(0.5, at_most=True)
    assert verdict_on(found, half) == "not certain within the spread"
    assert verdict_on(found, Target(1.0, at_most=True)) == "reached"
    assert verdict_on(cpu_ratio(theirs, ours), half) == "not certain within the spread"
    assert verdict_on(Ratio(name="A / B", windows=(0.6, 0.6, 0.6)), half) == "not reached"


def test_a_measurement_has_a_verdict_if_it_has_a_target() -> None:
    found = rates("A", 90.0, 100.0, 110.0)
    assert verdict_on(found, None) == ""
    assert verdict_on(found, Target(80.0)) == "reached"
    assert verdict_on(found, Target(95.0)) == "not certain within the spread"
    assert verdict_on(found, Target(120.0, at_most=True)) == "reached"
    assert verdict_on(found, Target(79.0, at_most=True)) == "not reached"


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    one = dataclasses.replace(
        rates("loader", 90.0, 100.0),
        cpu_windows=(1.0, 3.0),
        setting="2 threads",
        ours=True,
        extends="plan",
        limit=200.0,
    )
    ratio = Ratio(name="A / B", windows=(1.0,))
    made = dataclasses.replace(report(one), ratios=(ratio,), notes=("a note",))
    before = Result(report=made, targets={"A / B": Target(2.0, at_most=True)})
    keep(before, tmp_path / "new" / "loader.json", started=0.0)
    after = read(tmp_path / "new" / "loader.json")
    assert after.report.seconds is not None
    assert dataclasses.replace(after, report=dataclasses.replace(after.report, seconds=None)) == before


@pytest.mark.parametrize("content", ["{}", '{"format": "other"}', "[]", "null", "no JSON"])
def test_what_is_no_result_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json is no result of a benchmark"):
        read(tmp_path / "x.json")


def test_a_result_without_windows_is_refused(tmp_path: Path) -> None:
    document = report(rates("loader", 90.0)).as_json()
    document["measurements"][0]["windows"] = []
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="loader has no windows"):
        read(tmp_path / "x.json")


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
    found = {one.name: one.verdict for one in changes(Result(report=before), Result(report=after))}
    assert found == {
        "A": "better",
        "B": "no difference within the spread",
        "plan": "better",
        "few": "too few windows",
    }
    with pytest.raises(DataError, match="no measurement in common"):
        changes(Result(report=report(rates("A", 1.0))), Result(report=report(rates("B", 1.0))))


def test_ratios_are_compared_by_the_side_of_their_target() -> None:
    def found(*windows: float, at_most: bool = False) -> Result:
        ratio = Ratio(name="A / B", windows=windows)
        changed = dataclasses.replace(report(), ratios=(ratio,))
        return Result(report=changed, targets={"A / B": Target(1.5, at_most=at_most)})

    for at_most, says in ((True, "worse"), (False, "better")):
        (ratio,) = changes(found(1.0, 1.0, 1.0), found(2.0, 2.0, 2.0, at_most=at_most))
        assert (ratio.ratio, ratio.verdict) == (2.0, says)


def test_other_settings_and_another_machine_are_said() -> None:
    before = report(rates("A", 1.0))
    after = dataclasses.replace(
        before, settings={"batch_size": 16}, machine={**before.machine, "cpu": "abacus"}
    )
    assert differences(before, before) == []
    assert differences(before, after) == [
        f"cpu: {before.machine['cpu']}, then abacus",
        "batch_size: 64, then 16",
    ]


def test_two_results_are_shown_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report(rates("A", 1.0, 1.0, 1.0))
    second = dataclasses.replace(report(rates("A", 2.0, 2.0, 2.0)), settings={"batch_size": 16})
    for name, one in (("before", first), ("after", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one.as_json()))
    shown: list[object] = []
    monkeypatch.setattr(output, "print", lambda *parts, **options: shown.extend(parts))
    monkeypatch.setattr("sys.argv", ["compare", f"{tmp_path}/before.json", f"{tmp_path}/after.json"])
    compare.main()
    assert shown[0] == "Not the same: batch_size: 64, then 16"
