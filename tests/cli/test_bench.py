import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from siamusic_fast.bench.doctor import Facts
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.bench.timing import Timing
from siamusic_fast.shards.manifest import ShardSet
from tests.bench.test_doctor import CPU
from tests.cli.test_main import error_line, run


def test_the_benchmark_of_the_loader_has_help_with_an_example() -> None:
    assert "siamusic-fast bench loader --data" in run("bench", "loader", "--help").stdout


@pytest.fixture(scope="module")
def kept(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A benchmark of the loader and the folder that its result is kept in."""
    folder = tmp_path_factory.mktemp("bench") / "kept"
    words = ("--data", shard_set.folder, "--aug", "image", "--batch-size", 8, "--device", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siamusic_fast.cli.bench_session.QUICK", Timing(windows=3, seconds=0.1))
        return run("bench", "loader", *words, "--quick", "--out", folder), folder


def test_bench_loader_ends_with_one_line_of_json_and_keeps_it_with_a_chart(kept: tuple[Result, Path]) -> None:
    result, folder = kept
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    assert document["settings"]["shards"] == "fma_medium"
    (image,) = (one for one in document["measurements"] if one["name"] == "DALI: image")
    assert len(image["windows"]) == 3
    assert "pairs/s" in result.stderr
    assert 0.3 < document["seconds"] < 600
    assert json.loads((folder / "loader.json").read_text()) == document
    assert (folder / "loader.png").read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_a_gpu_where_there_is_none(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = ("--data", shard_set.folder, "--device", "cuda", "--batch-size", 4, "--quiet")
    line = error_line(run("bench", "loader", *words))
    assert "--device cuda asks for a GPU" in line
    assert "use --device cpu" in line


class Measured(list[tuple[Any, ...]]):
    """Stands for the `measure` of a benchmark and keeps what it was asked for."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        self.append((*arguments, options))
        one = Measurement(name="A", unit="pairs/s", windows=(1.0, 2.0, 3.0))
        return Report(title="Fake", settings={}, measurements=(one,))


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measured]:
    """Replace what takes long."""
    found = {"loader": Measured(), "train": Measured(), "shard": Measured()}
    for name, measure in found.items():
        monkeypatch.setattr(f"siamusic_fast.bench.{name}.measure", measure)
    return found


@pytest.mark.parametrize("name", ["loader", "train", "shard"])
def test_an_earlier_result_is_replaced_only_if_that_is_said(
    benches: dict[str, Measured], shard_set: ShardSet, tmp_path: Path, name: str
) -> None:
    kept = tmp_path / f"{name}.json"
    kept.write_text("earlier")
    data = () if name == "shard" else ("--data", shard_set.folder, "--batch-size", 4, "--device", "cpu")
    words = ("bench", name, *data, "--quiet", "--out", tmp_path)
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

    monkeypatch.setattr("siamusic_fast.cli.bench_session.atomic_write", full)
    result = run("bench", "shard", "--quiet", "--out", tmp_path)
    assert "No space left" in error_line(result)
    assert json.loads(result.stdout)["title"] == "Fake"


def test_a_quick_look_measures_less(benches: dict[str, Measured], shard_set: ShardSet) -> None:
    words = ("bench", "loader", "--data", shard_set.folder, "--batch-size", 4, "--device", "cpu", "--quiet")
    for more in ((), ("--quick",)):
        assert run(*words, *more).exit_code == 0
    timings = [asked[2] for asked in benches["loader"]]
    assert [(one.windows, one.seconds) for one in timings] == [(9, 1.5), (5, 0.5)]
    for words in (("bench", "shard", "--quiet", *more) for more in ((), ("--quick",))):
        assert run(*words).exit_code == 0
    assert [options["tracks"] for *_, options in benches["shard"]] == [400, 100]


def test_bench_train_measures_what_it_is_asked_for(
    benches: dict[str, Measured], shard_set: ShardSet, tmp_path: Path
) -> None:
    words = ("--data", shard_set.folder, "--device", "cpu", "--aug", "audio", "--batch-size", 4, "--quick")
    result = run("bench", "train", *words, "--backbone", "resnet18", "--out", tmp_path)
    assert result.exit_code == 0
    assert json.loads((tmp_path / "train.json").read_text()) == json.loads(result.stdout)
    ((setup, aug, backbone, timing, *_),) = benches["train"]
    assert (aug, backbone, setup.batch_size, timing.seconds) == ("audio", "resnet18", 4, 0.5)


def test_a_cpu_trains_a_small_network_by_default(benches: dict[str, Measured], shard_set: ShardSet) -> None:
    words = ("bench", "train", "--data", shard_set.folder, "--device", "cpu", "--quiet")
    assert run(*words).exit_code == 0
    ((setup, _, backbone, *_),) = benches["train"]
    assert (backbone, setup.batch_size) == ("resnet18", 16)


def test_bench_doctor_shows_the_rates_and_ends_with_the_advice(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siamusic_fast.bench.doctor.examine", lambda *arguments, **options: CPU)
    words = ("bench", "doctor", "--data", shard_set.folder, "--gpus", 0)
    shown = run(*words)
    assert shown.exit_code == 0
    assert "training with the loader" in shown.stdout
    assert "--backend torch" in shown.stdout.splitlines()[-1]
    assert "waits 30% of the time" in shown.stdout
    values = json.loads(run(*words, "--json").stdout)
    assert (values["rates"]["training with the loader"], values["codec"], values["waiting"]) == (
        440,
        "wav",
        0.3,
    )
    assert (values["backbone"], values["batch_size"]) == ("resnet18", 16)
    assert "--backend torch" in values["advice"]


@pytest.mark.parametrize(
    ("words", "devices", "share", "threads"),
    [
        ((), None, 8, 8),
        (("--gpus", 0), 0, 8, 8),
        (("--gpus", 1), 1, 8, 8),
        (("--gpus", 4), 1, 2, 2),
        (("--gpus", 4, "--loader-threads", 3), 1, 2, 3),
    ],
)
def test_bench_doctor_measures_one_of_several_gpus_with_its_share_of_the_cores(
    shard_set: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    devices: int | None,
    share: int,
    threads: int,
) -> None:
    asked: list[object] = []

    def device_for(count: int | None) -> torch.device:
        asked.append(count)
        return torch.device("cuda" if count else "cpu")

    def prepare(*_: object, device: torch.device, batch_size: int, loader_threads: int, **__: Any) -> Any:
        asked.extend([device.type, batch_size, loader_threads])

    def examine(setup: object, aug: str, backbone: str, cores: int, *_: object) -> Facts:
        asked.extend([backbone, cores])
        return CPU

    monkeypatch.setattr("siamusic_fast.processes.launch.device_for", device_for)
    monkeypatch.setattr("siamusic_fast.bench.stages.prepare", prepare)
    monkeypatch.setattr("siamusic_fast.bench.doctor.examine", examine)
    monkeypatch.setattr("siamusic_fast.processes.pool.cores", lambda: 8)
    assert run("bench", "doctor", "--data", shard_set.folder, "--quiet", *words).exit_code == 0
    usual = ("cuda", 64, threads, "resnet50") if devices else ("cpu", 16, threads, "resnet18")
    assert asked == [devices, *usual, share]
