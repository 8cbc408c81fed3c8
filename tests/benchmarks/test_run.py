import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import run
from benchmarks.result import Result, read
from siamusic_fast.bench.report import Measurement, Report


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Result:
        one = Measurement(name="A", unit="pairs/s", windows=(1.0,))
        return Result(report=Report(title="Fake", settings={}, measurements=(one,)))

    def benchmarks(*_: object, **__: object) -> dict[str, Callable[[], Result]]:
        return dict.fromkeys(run.NAMES, found)

    monkeypatch.setattr(run, "benchmarks", benchmarks)


def test_each_run_is_kept_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for moment in ("2026-11-22-080000", "2026-11-22-090000"):
        monkeypatch.setattr(time, "strftime", lambda words, moment=moment: moment)
        assert CliRunner().invoke(run.main, ["--device", "cpu"]).exit_code == 0
    kept = sorted(tmp_path.glob("benchmarks/here/*/train.json"))
    assert [path.parent.name for path in kept] == ["2026-11-22-080000", "2026-11-22-090000"]


def test_only_what_is_named_is_run(tmp_path: Path) -> None:
    words = ["loader", "shard", "--device", "cpu", "--out", f"{tmp_path}/new"]
    assert CliRunner().invoke(run.main, words).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["loader.json", "shard.json"]
    assert read(tmp_path / "new" / "loader.json").report.title == "Fake"
