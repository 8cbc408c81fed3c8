import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import result
from benchmarks.result import Result
from benchmarks.sizing import page, run
from benchmarks.sizing.opening import Stored
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.bench.shard import PACKING


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the measurement a matter of seconds, in this process."""

    def here(function: Callable[..., Any], **options: Any) -> Any:
        return function(**options)

    monkeypatch.setattr(run, "call_in_process", here)
    for module in (run, page):
        monkeypatch.setattr(module, "MOST", 1_000)
        monkeypatch.setattr(module, "SIMULATED", (10_000,))
        monkeypatch.setattr(module, "SHARDS", 20)
        monkeypatch.setattr(module, "PROCESSES", 4)
        names = ("plan of 1,000 tracks, time", "plan of 1,000 tracks, memory", "opening 1,000 tracks, time")
        monkeypatch.setattr(module, "LIMITS", dict(zip(names, (60.0, 1.0, 30.0), strict=True)))
    monkeypatch.setattr(run, "_PACKED", 1_000)
    monkeypatch.setattr(run, "_FILES", 10)
    monkeypatch.setattr(run, "WORKERS", 10)
    monkeypatch.setattr(run, "store", lambda *_: Stored(clips=2, hours=0.5, per_1000_hours=160.0))


@pytest.fixture
def figures(tmp_path: Path) -> page.Figures:
    """Round figures, as if they had been measured."""
    rows = {
        **{f"1,000 hours in {codec}": size for codec, size in (("wav", 160), ("flac", 80), ("ogg", 20))},
        "row of tracks.csv": 250.0,
        "shard in manifest.json": 400.0,
        "plan of 1,000,000 tracks, time": 5.0,
        "plan of 10,000,000 tracks, time": 50.0,
        "opening 100,000,000 tracks, memory": 6_144.0,
    }
    measured = tuple(Measurement(name=name, unit="", windows=(value,)) for name, value in rows.items())
    settings = {"tracks_per_shard": 512, "seconds_per_track": 0.03}
    sizing = Report(title="", settings=settings, measurements=measured, machine={})
    packing = (Measurement(name=PACKING, unit="tracks/s", windows=(50.0,)),)
    shard = Report(title="", settings={"procs": 2}, measurements=packing, machine={})
    return page.Figures(Result(report=sizing), Result(report=shard))


def test_what_was_not_measured_lies_on_a_line_through_the_largest_that_was(figures: page.Figures) -> None:
    assert figures.at("plan of {} tracks, time", 1_000_000) == (5.0, True)
    assert figures.at("plan of {} tracks, time", 100_000_000) == (500.0, False)
    assert figures.at("opening {} tracks, memory", 25_000) == (6_144.0 / 4_000, False)
    assert (figures.per_hour, figures.shards(25_000)) == (90_000.0, 49)


def test_a_limit_that_is_missed_is_named_with_how(
    figures: page.Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, tuple[float, ...]] = {
        "a, time": (70.0, 65.0),
        "b, time": (70.0, 50.0),
        "c, time": (50.0, 45.0),
        "memory": (70.0,),
    }
    rows = {
        name: Measurement(name=name, unit="s", windows=(clock,), cpu_windows=tuple(cpu))
        for name, (clock, *cpu) in found.items()
    }
    monkeypatch.setattr(page, "MOST", 1_000)
    monkeypatch.setattr(page, "LIMITS", dict.fromkeys(found, 60.0))
    monkeypatch.setattr(figures, "rows", rows)
    words = " ".join(page._limits(figures).split("\n\n")[1].split())
    assert words == (
        "Missed in seconds of one core as well: a, time. Missed by the clock only, as other programs had "
        "the machine: b, time. Missed: memory."
    )


def test_every_part_is_measured_and_the_page_is_made_of_all(small: None, tmp_path: Path) -> None:
    music = make_corpus(tmp_path / "music", 2, "wav", seconds=0.1).folder
    words = ["--size", "1000", "--size", "3000"]
    words += ["--music", str(music), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(run.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    kept = result.read(tmp_path / "out" / "sizing.json")
    rows = {one.name: one.median for one in kept.report.measurements}
    assert "plan of 3,000 tracks, time" not in rows
    assert rows["opening 3,000 tracks, time"] > 0
    assert (
        rows["20 shards over 4 processes, fewest batches"] == rows["20 shards over 4 processes, most batches"]
    )
    assert (kept.report.settings["clips"], kept.targets["plan of 1,000 tracks, memory"].value) == (2, 1.0)
    text = page.page("# Scaling\n\nFirst.\n", page.figures_of(tmp_path / "out" / "sizing.json"))
    for words_of in (
        "| audio | tracks \N{MULTIPLICATION SIGN} 30 s / 3,600 | 208 h | 8,333 h | 833,333 h |",
        "not measured",
    ):
        assert words_of in text
    assert re.search(r"\| plan of 1,000 tracks, memory: at most 1 MiB \| [\d,.]+ MiB \|", text)
    assert text.count("\n## ") == 2


def test_a_part_that_is_measured_again_leaves_the_others(small: None, tmp_path: Path) -> None:
    def measured() -> dict[str, float]:
        words = ["--size", "1000", "--out", str(tmp_path), "plans"]
        assert CliRunner().invoke(run.main, words, catch_exceptions=False).exit_code == 0
        return {one.name: one.median for one in result.read(tmp_path / "sizing.json").report.measurements}

    first = measured()
    found = result.read(tmp_path / "sizing.json")
    other = Measurement(name="1,000 hours in wav", unit="GB", windows=(160.0,))
    report = replace(found.report, measurements=(other, *found.report.measurements))
    result.keep(replace(found, report=report), tmp_path / "sizing.json", 0.0)
    again = measured()
    assert again.keys() == {other.name} | first.keys()
    assert again["1,000 hours in wav"] == 160.0
    elsewhere = replace(found, report=replace(found.report, machine={"cpu": "abacus"}))
    with pytest.raises(SystemExit, match="another machine"):
        run.merged(elsewhere, found)


@pytest.mark.parametrize("after", ["", "## Not tried\n\nMuch.\n"])
def test_only_its_own_sections_are_written(
    figures: page.Figures, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr(
        page, "sections", lambda figures: "## Sizing\n\nNew.\n\n## What breaks first\n\nNew.\n"
    )
    old = f"# Scaling\n\nFirst.\n\n## Sizing\n\nOld.\n\n## What breaks first\n\nOld.\n\n{after}"
    made = page.page(old, figures)
    assert made.rstrip() == old.replace("Old.", "New.").rstrip()
    assert page.page(made, figures) == made
