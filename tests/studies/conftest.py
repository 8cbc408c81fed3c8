"""A study that tests share: two cells, stopped in the middle of the second, then finished."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from siamusic_fast.config.studies import ReproduceConfig
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.progress import Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies.reproduce import plan_reproduction
from siamusic_fast.studies.results import StudyResult
from siamusic_fast.studies.running import PlannedStudy
from siamusic_fast.studies.slots import Devices
from tests.runs import MEL

ON_CPU = Devices(slots=1, gpus_per_cell=0)
CONFIG = ReproduceConfig(
    mel=MEL,
    backbones=("resnet18",),
    epochs=1,
    finetune_epochs=1,
    batch_size=8,
    backend="torch",
    logger=("none",),
)


class _StopsAt:
    """A display that stops the work when the task `description` begins."""

    def __init__(self, description: str) -> None:
        self._description = description

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        if description == self._description:
            raise Stopped(2)
        yield _Quiet()


class _Quiet:
    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        pass


def files_with_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def planned(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> PlannedStudy:
    out = tmp_path_factory.mktemp("studies") / "reproduce"
    return plan_reproduction(CONFIG, [shard_set], shard_set, out, ON_CPU, remark="Tiny.")


@pytest.fixture(scope="session")
def left_by_the_stop(planned: PlannedStudy) -> dict[Path, int]:
    """The files of the study, with their times, after it was stopped before the second cell's fine-tuning."""
    _, second = planned.study.cells
    with pytest.raises(Stopped):
        planned.run(_StopsAt(f"2/2 {second.name}: Fine-tuning"))
    assert planned.folder.left(planned.study) == [second]
    return files_with_times(planned.folder.path / "cells")


@pytest.fixture(scope="session")
def result(planned: PlannedStudy, left_by_the_stop: dict[Path, int]) -> StudyResult:
    return planned.run()
