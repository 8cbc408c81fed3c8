"""`reproduce` and `ablate` on the command line; most cells are trained in tests/studies."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from siamusic_fast.cli import main, studies
from siamusic_fast.config.studies import ReproduceConfig
from siamusic_fast.errors import DataError
from siamusic_fast.folder_lock import is_locked
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies import estimate, slots, tiny
from siamusic_fast.studies.reproduce import plan_reproduction
from siamusic_fast.studies.slots import Devices
from siamusic_fast.studies.study import Cell
from tests.faults.processes import command, finish, kill, start, wait_for
from tests.processes.test_loopback import until
from tests.runs import MEL
from tests.studies.conftest import files_with_times

SMALL = ("--backend", "torch", "--logger", "none", "--gpus", 0)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def reproduce(shard_set: ShardSet, tmp_path: Path) -> tuple[object, ...]:
    """A command for two cells."""
    data = ("--pretrain-on", shard_set.folder, "--data", shard_set.folder)
    return ("reproduce", *data, "--backbones", "resnet18", *SMALL, "--out", tmp_path / "study")


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """Errors that cells raise instead of training, by the recipe of the cell."""
    errors: dict[str, BaseException] = {}

    def fail(study: object, cell: Cell, folder: object, **_: Any) -> None:
        raise errors.get(cell.config.aug, DataError(f"{cell.config.aug} fails."))

    monkeypatch.setattr(slots, "run_cell", fail)
    monkeypatch.setattr(estimate, "_seconds_per_pair", lambda cell, gpus: 0.1)
    return errors


def test_cells_that_fail_are_named_and_the_exit_code_is_1(
    reproduce: tuple[object, ...], cells: dict[str, BaseException], tmp_path: Path
) -> None:
    result = run(*reproduce)
    assert result.exit_code == 1
    for aug in ("audio", "image"):
        assert f"error: fma-medium-resnet18-{aug}-seed0: {aug} fails." in result.stderr
    assert f"2 cells failed; try again with: siamusic-fast {' '.join(map(str, reproduce))}" in result.stderr
    assert "cells     2 to do: 2 pre-trainings and 4 fine-tunings" in result.stderr
    assert "not finished" in result.stdout
    assert "audio fails." in (tmp_path / "study" / "report.html").read_text()


def test_a_stopped_study_says_how_it_goes_on(
    reproduce: tuple[object, ...], cells: dict[str, BaseException]
) -> None:
    cells["audio"] = Stopped(2)
    result = run(*reproduce, "--quiet")
    assert result.exit_code == 130
    assert f"go on with: siamusic-fast {' '.join(map(str, reproduce))}" in result.stderr


def test_a_dry_run_says_what_it_will_take_and_leaves_nothing(
    reproduce: tuple[object, ...], cells: dict[str, BaseException], tmp_path: Path
) -> None:
    result = run(*reproduce, "--seeds", 3, "--dry-run")
    assert result.exit_code == 0
    assert "6 to do: 6 pre-trainings and 12 fine-tunings" in result.stdout
    values = json.loads(run(*reproduce, "--dry-run", "--json").stdout)
    assert (values["cells"], values["finetunings"]) == (2, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_how_many_gpus_stay_idle(
    shard_set: ShardSet, cells: dict[str, BaseException], tmp_path: Path
) -> None:
    config = ReproduceConfig(mel=MEL, backbones=("resnet18",), backend="torch")
    planned = plan_reproduction(
        config, [shard_set], shard_set, tmp_path / "study", Devices(slots=1, gpus_per_cell=0, idle_gpus=1)
    )
    (time,) = (words for name, words in studies.plan(planned.estimate()) if name == "time")
    assert time.endswith("without torch.compile; 1 GPU idle, too few for a cell")


def test_an_ablation_counts_its_rows(
    shard_set: ShardSet, cells: dict[str, BaseException], tmp_path: Path
) -> None:
    words = (
        "ablate",
        "--data",
        shard_set.folder,
        "--backbone",
        "resnet18",
        *SMALL,
        "--out",
        tmp_path / "study",
    )
    result = run(*words, "--aug", "mask,hflip,cutout", "--pairs", "--scale", "0.5", "--dry-run")
    assert "12 to do" in result.stdout  # the whole, nothing, 3 alone, 3 left out, 3 pairs, 1 factor
    assert "error: scale = 'half' is no number" in run(*words, "--scale", "half").stderr


def test_tiny_studies_make_their_own_music(
    monkeypatch: pytest.MonkeyPatch, cells: dict[str, BaseException], tmp_path: Path
) -> None:
    monkeypatch.setattr(tiny, "CORPUS", dataclasses.replace(tiny.CORPUS, tracks_per_genre=3))
    result = run("reproduce", "--tiny", *SMALL, "--out", tmp_path / "study")
    assert "4 to do" in result.stderr  # two networks, two recipes
    assert "It says that the study works, and nothing about music." in result.stdout
    data = tmp_path / "study" / "data"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.tar")}
    assert before
    assert run("ablate", "--tiny", "--data", "mine").exit_code == 2
    assert run("reproduce", "--tiny", *SMALL, "--dry-run", "--out", tmp_path / "study").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.tar")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "rows"),
    [(("reproduce",), 4 * 2), (("ablate", "--aug", "mask,hflip"), 4)],  # reproduce has two protocols
)
def test_a_tiny_study_trains_and_scores_all_of_its_cells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], rows: int
) -> None:
    monkeypatch.setattr(tiny, "CORPUS", dataclasses.replace(tiny.CORPUS, tracks_per_genre=6))
    out = tmp_path / "study"
    result = run(*words, "--tiny", *SMALL, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["failed"] == {}
    assert [one["seeds"] for one in values["rows"]] == rows * [[0]]
    assert all("difference" in one for one in values["differences"])
    for name in ("table.md", "report.html"):
        assert tiny.REMARK in (out / name).read_text()


@pytest.mark.slow
def test_a_killed_study_goes_on_from_its_cells(shard_set: ShardSet, tmp_path: Path) -> None:
    data, out = ("--pretrain-on", shard_set.folder, "--data", shard_set.folder), tmp_path / "study"
    trained = ("--epochs", 2, "--finetune-epochs", 1, "--batch-size", 8, "--checkpoint-minutes", 1e-6)
    words = ("reproduce", *data, "--backbones", "resnet18", "--seconds", 1, *trained, *SMALL, "--out", out)
    process = start(command, *words, log=tmp_path / "log")
    first, second = (out / "cells" / f"fma-medium-resnet18-{aug}-seed0" for aug in ("audio", "image"))
    wait_for((second / "pretraining" / "checkpoint.pt").exists, process)
    kill(process, "one")
    assert finish(process) == -signal.SIGKILL
    until(lambda: not is_locked(out), 10)  # threads of a killed process end after it, and hold the lock
    before = files_with_times(first)
    assert first / "result.json" in before
    assert not (second / "result.json").exists()
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert [one["seeds"] for one in json.loads(result.stdout)["rows"]] == 4 * [[0]]
    assert files_with_times(first) == before
