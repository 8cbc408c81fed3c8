"""What a study is: its cells, which of them are compared, and the files of its folder."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import SETTINGS_LIMIT, read_regular
from siamusic_fast.folder_lock import LOCK
from siamusic_fast.models.run_files import save_json
from siamusic_fast.pipelines.recipes import file_name
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.run_folder import differing_settings

STUDY = "study.json"
"""What a study is, for people and for the next call."""
CELL = "cell.json"
"""The settings of a cell, which the cell keeps from its first moment on."""
RESULT = "result.json"
"""The scores of a cell, written when it is finished."""
ERROR = "error.txt"
"""Why a cell failed the last time."""
_OF_NO_WEIGHT = ("checkpoint_minutes", "keep_going", "logger")
"""Settings that do not affect the weights: the same study may go on with others."""

Row = tuple[str, ...]
"""What distinguishes a row of the table, one text for each of the study's columns."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pre-training, with what follows it."""

    row: Row
    """Row of the table that it belongs to. The cells of a row differ in their seeds alone."""
    config: PretrainConfig
    data: ShardSet
    """Shards that it is pre-trained on."""

    @property
    def name(self) -> str:
        """Name of its folder, such as fma_medium-resnet50-image-seed0."""
        return f"{file_name('-'.join(self.row))}-seed{self.config.seed}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Whether some rows are better than others on the same test tracks."""

    words: str
    """What is compared, such as "image - audio, resnet50"."""
    ours: tuple[Row, ...]
    theirs: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of cells, and what is asked of it."""

    kind: str
    """Command that made it: `reproduce` or `ablate`."""
    title: str
    columns: tuple[str, ...]
    """Headings of the parts of a row."""
    cells: tuple[Cell, ...]
    test: ShardSet
    """Shards that classifiers learn from and are scored on."""
    finetuning: Mapping[str, FinetuneConfig]
    """Settings of fine-tuning by protocol; the seed is that of the cell."""
    questions: tuple[Question, ...]
    asked: str
    """What the questions ask together, such as "Does image beat audio?"."""
    processes: int = 1
    """Processes of a cell, one for each of its GPUs."""
    remark: str = ""
    """What a reader must know before any figure."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table, in order."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    def settings_of(self, cell: Cell) -> dict[str, Any]:
        """Return all that the weights and the scores of `cell` depend on, as plain values."""
        values: dict[str, Any] = {
            "pretraining": settings.dump(cell.config),
            "finetuning": {name: settings.dump(config) for name, config in self.finetuning.items()},
            "shards": _digest(cell.data, cell.config.splits),
            "test_shards": _digest(self.test, tuple(self.test.splits)),
            "processes": self.processes,
        }
        for part in (values["pretraining"], *values["finetuning"].values()):
            for name in _OF_NO_WEIGHT:
                del part[name]
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study: a folder for each cell, and what is written of all of them."""

    path: Path

    def cell(self, cell: Cell) -> Path:
        """Return the folder of `cell`."""
        return self.path / "cells" / cell.name

    def is_finished(self, cell: Cell) -> bool:
        """Whether `cell` has been scored."""
        return (self.cell(cell) / RESULT).is_file()

    def left(self, study: Study) -> list[Cell]:
        """Return the cells of `study` that are not finished, in order."""
        return [cell for cell in study.cells if not self.is_finished(cell)]

    def check(self, study: Study) -> None:
        """Raise DataError or ConfigError if the folder holds something else, or cells of other settings."""
        if not self.path.exists():
            return
        if not self._is_empty() and not self._has_study():
            raise DataError(
                f"{self.path} is not empty and no study: use another out (on the command line --out)."
            )
        if (path := self.path / STUDY).is_file():
            found = _read(path).get("study")
            if not found:
                raise DataError(f"{path} names no study: remove it, and its study goes on.")
            if found != study.kind:
                raise DataError(
                    f"{self.path} holds a study of {found}, not of {study.kind}: use another out (on the "
                    "command line --out)."
                )
        for cell in study.cells:
            path = self.cell(cell) / CELL
            if path.is_file() and (names := differing_settings(_read(path), study.settings_of(cell))):
                raise ConfigError(
                    f"{self.path} was started with another {', '.join(names)} ({path} has all settings): go "
                    "on with the settings that it was started with, or use another out (on the command "
                    "line --out)."
                )

    def _is_empty(self) -> bool:
        return self.path.is_dir() and all(file.name in (LOCK, "data") for file in self.path.iterdir())

    def _has_study(self) -> bool:
        return (self.path / STUDY).is_file() or any(self.path.glob(f"cells/*/{CELL}"))

    def write(self, study: Study) -> None:
        """Write what the study is, and the settings of its cells."""
        save_json(self.path / STUDY, {"study": study.kind, "title": study.title})
        for cell in study.cells:
            self.cell(cell).mkdir(parents=True, exist_ok=True)
            if not (self.cell(cell) / CELL).is_file():
                save_json(self.cell(cell) / CELL, study.settings_of(cell))


def seeds_of(first: int, count: int) -> range:
    """Return the seeds of the cells of a row."""
    return range(first, first + count)


def with_seed(config: FinetuneConfig, cell: Cell) -> FinetuneConfig:
    """Return the settings of the fine-tuning of `cell`."""
    return dataclasses.replace(config, seed=cell.config.seed)


def _digest(shard_set: ShardSet, splits: tuple[str, ...]) -> str:
    """Return a SHA-256 that differs if any shard of `splits` does."""
    return hashlib.sha256("".join(shard.sha256 for shard in shard_set.shards(splits)).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, SETTINGS_LIMIT))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove it, and its study goes on.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no settings: remove it, and its study goes on.")
    return values
