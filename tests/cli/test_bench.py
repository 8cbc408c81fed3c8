import errno
import importlib
import json
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result

from siamusic_fast.bench.doctor import Facts
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.cli.bench import settings
from siamusic_fast.shards.manifest import ShardSet
from tests.bench.test_doctor import CPU
from tests.cli.test_main import error_line, run

TINY = ("--windows", 3, "--window-seconds", 0.05)


def test_the_benchmark_of_the_loader_has_help_with_an_example() -> None:
    assert "siamusic-fast bench loader --data" in run("bench", "loader", "--help").stdout


@pytest.fixture(scope="module")
def kept(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A benchmark of the loader and the folder that its result is kept in."""
    folder = tmp_path_factory.mktemp("bench") / "kept"
    words = ("--data", shard_set.folder, "--aug", "image", "--peer", "none", "--batch-size", 8, "--gpus", 0)
    return run("bench", "loader", *words, "--windows", 3, "--window-seconds", 0.1, "--out", folder), folder


def test_bench_loader_ends_with_one_line_of_json_and_keeps_it_with_a_chart(kept: tuple[Result, Path]) -> None:
    result, folder = kept
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    assert document["settings"]["shards"] == "fma_medium"
    (image,) = (one for one in document["results"] if one["name"] == "DALI: recipe image")
    assert len(image["windows"]) == 3
    assert "pairs/s" in result.stderr
    assert 0.3 < document["seconds"] < 600
    assert json.loads((folder / "loader.json").read_text()) == document
    assert (folder / "loader.png").read_bytes().startswith(b"\x89PNG")


def test_bench_compare_shows_what_two_results_have_in_common(
    kept: tuple[Result, Path], tmp_path: Path
) -> None:
    file = Path(shutil.copy(kept[1] / "loader.json", tmp_path))
    result = run("bench", "compare", file, file, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["differences"] == []
    assert {(one["ratio"], one["verdict"]) for one in document["changes"]} == {
        (1.0, "no difference within the spread")
    }
    other = json.loads(file.read_text())
    other["settings"]["batch_size"] = 16
    (tmp_path / "other.json").write_text(json.dumps(other))
    shown = run("bench", "compare", file, tmp_path / "other.json")
    assert "Not the same: batch_size: 8, then 16" in shown.stdout
    file.write_text("{}")
    assert "is no result of a benchmark" in error_line(run("bench", "compare", file, file))


def test_bench_refuses_a_gpu_where_there_is_none(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    line = error_line(run("bench", "loader", "--data", shard_set.folder, "--gpus", 1))
    assert "gpus = 1" in line
    assert "--gpus 0" in line


def test_bench_refuses_a_batch_larger_than_the_split(shard_set: ShardSet) -> None:
    line = error_line(run("bench", "loader", "--data", shard_set.folder, "--gpus", 0, "--quiet"))
    assert "batch_size = 64 does not fit the 24 tracks" in line
    assert "--batch-size 24" in line


def module(name: str) -> ModuleType:
    """Return a module whose command has the same name, and so hides it in the package."""
    return importlib.import_module(f"siamusic_fast.cli.bench.{name}")


class Measured(list[dict[str, Any]]):
    """Stands for the `measure` of a benchmark and keeps what it was asked for."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        self.append(options)
        one = Measurement(name="A", unit="pairs/s", windows=(1.0, 2.0, 3.0))
        return Report(title="Fake", settings={}, measurements=(one,))


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measured]:
    """Replace what takes long."""
    found = {"loader": Measured(), "train": Measured(), "shard": Measured(), "scaling": Measured()}
    for name, measure in found.items():
        monkeypatch.setattr(f"siamusic_fast.bench.{name}.measure", measure)
    monkeypatch.setattr(settings, "tracks_for", lambda batch_size: 2)
    return found


@pytest.mark.parametrize("on_gpu", [False, True])
def test_bench_all_keeps_every_result_and_is_smaller_on_a_cpu(
    benches: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    device = torch.device("cuda" if on_gpu else "cpu")
    for place in ("everything", "loader", "train"):
        monkeypatch.setattr(module(place), "device_for", lambda gpus: device)
    assert run("bench", "all", "--quiet", "--out", tmp_path / "new").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        *("loader.json", "loader.png", "shard.json", "shard.png", "train.json", "train.png")
    ]
    (asked,) = benches["train"]
    assert (asked["backbone"], asked["batch_size"]) == (("resnet50", 64) if on_gpu else ("resnet18", 16))
    assert asked["device"] == device
    (loader,), (shard,) = benches["loader"], benches["shard"]
    assert (loader["batch_size"], loader["peers"]) == (256 if on_gpu else 64, ["torch"])
    assert loader["timing"].windows == 5
    assert (shard["windows"], shard["planned"]) == (3, 1_000_000)


def test_bench_all_keeps_each_run_in_a_folder_of_its_own(
    benches: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for moment in ("2026-11-22-080000", "2026-11-22-090000"):
        monkeypatch.setattr(time, "strftime", lambda words, moment=moment: moment)
        assert run("bench", "all", "--quiet", "--gpus", 0).exit_code == 0
    kept = sorted(tmp_path.glob("benchmarks/here/*/train.json"))
    assert [path.parent.name for path in kept] == ["2026-11-22-080000", "2026-11-22-090000"]


@pytest.mark.parametrize("name", ["loader", "train", "shard", "all"])
def test_an_earlier_result_is_replaced_only_if_that_is_said(
    benches: dict[str, Measured], tmp_path: Path, name: str
) -> None:
    kept = tmp_path / f"{'shard' if name == 'all' else name}.json"
    kept.write_text("earlier")
    gpus = () if name == "shard" else ("--gpus", 0)
    words = ("bench", name, *gpus, "--quiet", "--out", tmp_path)
    line = error_line(run(*words))
    assert f"{kept} exists" in line
    assert "--force" in line
    assert not any(benches.values())
    assert kept.read_text() == "earlier"
    assert run(*words, "--force").exit_code == 0
    assert json.loads(kept.read_text())["title"] == "Fake"


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    benches: dict[str, Measured], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    error_line(run("bench", "shard", "--quiet", "--out", tmp_path / "file" / "results"))
    assert benches["shard"] == []


def test_a_result_that_cannot_be_kept_is_printed(
    benches: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("siamusic_fast.cli.bench.rendering.atomic_write", full)
    result = run("bench", "shard", "--quiet", "--out", tmp_path)
    assert "No space left" in error_line(result)
    assert json.loads(result.stdout)["title"] == "Fake"


def test_what_is_said_counts_more_than_quick(benches: dict[str, Measured], shard_set: ShardSet) -> None:
    loader = ("bench", "loader", "--data", shard_set.folder, "--gpus", 0, "--quiet", "--quick")
    for more in ((), ("--windows", 9), ("--window-seconds", 2)):
        assert run(*loader, *more).exit_code == 0
    timings = [asked["timing"] for asked in benches["loader"]]
    assert [(one.windows, one.seconds) for one in timings] == [(5, 0.5), (9, 0.5), (5, 2)]
    for words in ((), ("--quick",), ("--quick", "--tracks", 30)):
        assert run("bench", "shard", "--quiet", *words).exit_code == 0
    asked = [(one["tracks"], one["windows"], one["planned"]) for one in benches["shard"]]
    assert asked == [(400, 3, 1_000_000), (100, 3, 100_000), (30, 3, 100_000)]


def test_bench_train_measures_what_it_is_asked_for(
    benches: dict[str, Measured], shard_set: ShardSet, tmp_path: Path
) -> None:
    words = ("--data", shard_set.folder, "--gpus", 0, "--aug", "audio", "--batch-size", 4, *TINY)
    result = run("bench", "train", *words, "--backbone", "resnet18", "--out", tmp_path)
    assert result.exit_code == 0
    assert json.loads((tmp_path / "train.json").read_text()) == json.loads(result.stdout)
    (asked,) = benches["train"]
    assert (asked["recipe"], asked["backbone"], asked["batch_size"]) == ("audio", "resnet18", 4)
    assert asked["timing"].seconds == 0.05


def test_a_quick_look_at_the_loader_leaves_out_the_slow_peer_unless_it_is_named(
    benches: dict[str, Measured], shard_set: ShardSet
) -> None:
    words = ("bench", "loader", "--data", shard_set.folder, "--gpus", 0, "--quiet")
    for more in ((), ("--quick",), ("--quick", "--peer", "paper"), ("--peer", "none")):
        assert run(*words, *more).exit_code == 0
    assert [asked["peers"] for asked in benches["loader"]] == [["torch", "paper"], ["torch"], ["paper"], []]


@pytest.mark.parametrize("option", [("--threads", 2), ("--peer", "torch")])
def test_scaling_refuses_what_it_would_ignore(shard_set: ShardSet, option: tuple[str, object]) -> None:
    words = ("bench", "loader", "--data", shard_set.folder, "--gpus", 0, "--scaling")
    line = error_line(run(*words, *option))
    assert "--scaling measures 1 to all threads and no peer" in line


def test_a_quick_look_at_scaling_goes_less_far(benches: dict[str, Measured], shard_set: ShardSet) -> None:
    words = ("--data", shard_set.folder, "--gpus", 0, "--quiet", "--scaling")
    assert run("bench", "loader", *words, "--quick").exit_code == 0
    assert run("bench", "loader", *words).exit_code == 0
    quick, thorough = benches["scaling"]
    assert (quick["most_tracks"], quick["most_shards"], quick["long_run"]) == (25_000, 100, 1_000)
    assert "most_tracks" not in thorough


def test_bench_doctor_shows_the_rates_and_ends_with_the_advice(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("doctor"), "examine", lambda *arguments, **options: CPU)
    words = ("bench", "doctor", "--data", shard_set.folder, "--gpus", 0)
    shown = run(*words)
    assert shown.exit_code == 0
    assert "with the loader" in shown.stdout
    assert "--backend torch" in shown.stdout.splitlines()[-1]
    assert "waits 30% of the time" in shown.stdout
    values = json.loads(run(*words, "--json").stdout)
    assert (values["together"], values["codec"], values["waiting"]) == (440, "wav", 0.3)
    assert (values["backbone"], values["batch_size"]) == ("resnet18", 16)
    assert "--backend torch" in values["advice"]


@pytest.mark.parametrize(("gpus", "devices"), [(None, None), (0, 0), (1, 1), (4, 1)])
def test_bench_doctor_measures_one_of_several_gpus(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch, gpus: int | None, devices: int | None
) -> None:
    asked: list[int | None] = []
    examined: list[dict[str, Any]] = []

    def device_for(count: int | None) -> torch.device:
        asked.append(count)
        return torch.device("cuda" if count else "cpu")

    def examine(*arguments: object, **options: Any) -> Facts:
        examined.append(options)
        return CPU

    monkeypatch.setattr(module("doctor"), "device_for", device_for)
    monkeypatch.setattr(module("doctor"), "examine", examine)
    words = () if gpus is None else ("--gpus", gpus)
    assert run("bench", "doctor", "--data", shard_set.folder, "--quiet", *words).exit_code == 0
    assert asked == [devices]
    assert examined[0]["gpus"] == (gpus or 1)
    small = ("resnet18", 16)
    assert (examined[0]["backbone"], examined[0]["batch_size"]) == (("resnet50", 64) if gpus else small)
