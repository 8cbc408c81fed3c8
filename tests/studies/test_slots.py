import dataclasses
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.errors import ConfigError, DataError, DeviceError
from siamusic_fast.progress import SILENT
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies import slots
from siamusic_fast.studies.reproduce import plan_reproduction
from siamusic_fast.studies.running import PlannedStudy, devices_for
from siamusic_fast.studies.slots import Devices, run_cells
from siamusic_fast.studies.study import Cell
from tests.studies.conftest import CONFIG, ON_CPU


@pytest.fixture
def two_cells(shard_set: ShardSet, tmp_path: Path) -> PlannedStudy:
    planned = plan_reproduction(CONFIG, [shard_set], shard_set, tmp_path / "study", ON_CPU)
    planned.folder.path.mkdir()
    planned.folder.write(planned.study)
    return planned


def run(planned: PlannedStudy, devices: Devices = ON_CPU) -> dict[str, str]:
    return run_cells(planned.study, planned.study.cells, planned.folder, devices, SILENT)


@pytest.mark.parametrize(
    ("error", "words", "kept"),
    [
        (DataError("no more tracks."), "no more tracks.", "no more tracks."),
        (OSError(28, "No space left on device", "x.pt"), "x.pt: No space left on device", "x.pt"),
        (ValueError("a bug"), "ValueError: a bug", "Traceback"),
    ],
)
def test_a_cell_that_fails_does_not_end_the_others(
    two_cells: PlannedStudy, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, kept: str
) -> None:
    done: list[Cell] = []

    def fail_first(study: object, cell: Cell, folder: object, **_: Any) -> None:
        if cell is two_cells.study.cells[0]:
            raise error
        done.append(cell)

    monkeypatch.setattr(slots, "run_cell", fail_first)
    first, second = two_cells.study.cells
    failed = run(two_cells)
    assert list(failed) == [first.name]
    assert failed[first.name].startswith(words)
    assert kept in (two_cells.folder.cell(first) / "error.txt").read_text()
    assert done == [second]


def test_processes_beside_this_one_report_the_errors_of_their_cells(two_cells: PlannedStudy) -> None:
    gone = dataclasses.replace(two_cells.study.test, folder=two_cells.folder.path / "gone")
    cells = tuple(dataclasses.replace(cell, data=gone) for cell in two_cells.study.cells)
    broken = dataclasses.replace(two_cells, study=dataclasses.replace(two_cells.study, cells=cells))
    failed = run(broken, Devices(slots=2, gpus_per_cell=0))
    assert failed.keys() == {cell.name for cell in cells}
    assert all(str(gone.folder) in words for words in failed.values())


def test_a_process_that_was_killed_is_a_cell_that_failed(two_cells: PlannedStudy) -> None:
    class Killed:
        exitcode = -9

        def poll(self) -> bool:
            return False

    cell, killed = two_cells.study.cells[0], Killed()
    one = slots._Running(cell, killed, killed, 0)  # type: ignore[arg-type]
    words = slots._outcome(one, two_cells.folder)
    assert "ended by signal 9" in words
    assert words in (two_cells.folder.cell(cell) / "error.txt").read_text()


def test_whatever_ends_a_study_ends_the_processes_of_its_cells(
    two_cells: PlannedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        alive = True

        def is_alive(self) -> bool:
            return self.alive

        def terminate(self) -> None:
            self.alive = False

        def join(self) -> None:
            assert not self.alive

        def kill(self) -> None:
            pass

    started: list[Process] = []

    def start(study: object, cell: Cell, folder: object, devices: object, slot: int) -> slots._Running:
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(Process())
        return slots._Running(cell, started[0], started[0], slot)  # type: ignore[arg-type]

    monkeypatch.setattr(slots, "_start", start)
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        run(two_cells, Devices(slots=2, gpus_per_cell=0))
    assert [one.alive for one in started] == [False]


def test_the_news_of_a_cell_is_the_last_line_of_its_newest_log(
    two_cells: PlannedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, folder = two_cells.study.cells[0], two_cells.folder
    log = folder.cell(cell) / "pretraining" / "metrics.jsonl"
    assert slots._news(cell, folder) == f"{cell.name} begins"
    log.parent.mkdir()
    log.write_text('{"epoch": 3}\n')
    assert slots._news(cell, folder) == f"{cell.name} pre-training epoch 3"
    log.write_text('{"epoch": 3}\n{"ep')
    assert slots._news(cell, folder) == f"{cell.name} runs"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "listed" / "and gone"]))
    assert slots._news(cell, folder) == f"{cell.name} runs"


@pytest.mark.parametrize(("allowed", "names"), [("4,GPU-8f6e", ["4", "GPU-8f6e"]), (None, ["0", "1", "2"])])
def test_a_slot_has_gpus_of_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, names: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert slots._gpu_names() == names


@pytest.mark.parametrize(
    ("gpus", "procs", "gpus_per_cell", "expected"),
    [
        (0, None, 1, Devices(slots=1, gpus_per_cell=0)),
        (0, 3, 1, Devices(slots=3, gpus_per_cell=0)),
        (None, None, 1, Devices(slots=8, gpus_per_cell=1)),
        (8, None, 4, Devices(slots=2, gpus_per_cell=4)),
        (7, None, 2, Devices(slots=3, gpus_per_cell=2, idle_gpus=1)),
    ],
)
def test_cells_are_shared_among_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int | None,
    procs: int | None,
    gpus_per_cell: int,
    expected: Devices,
) -> None:
    for module in ("studies.running", "processes.environment"):
        monkeypatch.setattr(f"siamusic_fast.{module}.visible_gpus", lambda: 8)
    assert devices_for(gpus, procs, gpus_per_cell) == expected


@pytest.mark.parametrize(
    ("visible", "asked", "error", "words"),
    [
        (0, (0, None, 2), ConfigError, "leave it out"),
        (0, (2, None, 1), DeviceError, "none is visible"),
        (2, (2, 2, 1), ConfigError, "add gpus=0"),
        (2, (2, None, 4), ConfigError, "use at most 2"),
    ],
)
def test_devices_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, visible: int, asked: tuple[Any, ...], error: type, words: str
) -> None:
    for module in ("studies.running", "processes.environment"):
        monkeypatch.setattr(f"siamusic_fast.{module}.visible_gpus", lambda: visible)
    with pytest.raises(error, match=words):
        devices_for(*asked)
