"""The files in the folder of a run: their names, which checkpoint is whole, and what may be replaced."""

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamusic_fast.errors import DataError
from siamusic_fast.files import SETTINGS_LIMIT, atomic_write, read_regular
from siamusic_fast.folder_lock import LOCK, FolderLock, in_use, is_locked
from siamusic_fast.models import checkpoint

CONFIG = "config.json"
"""The settings of a run or of a classifier, the shards that it was made from, and its number of processes."""
LOG_FILE = "metrics.jsonl"
"""The figures of a run, one JSON object per line."""
CLASSIFIER = "classifier.pt"
"""The classifier that fine-tuning keeps."""
BEST = "best.pt"
"""The checkpoint of the epoch with the best kNN accuracy on the validation tracks."""
REPORT = "report.html"
"""The page about a run."""

_OF_BOTH = (
    r"config\.json|classifier\.pt|metrics\.jsonl|events\.out\..*|(wandb|mlflow)\.id|plots|evaluate|export|\.lock|"
    r"\.[\w-]+\.\w+\.tmp"
)
_OF_FINETUNING = r"finetune-checkpoint(-previous|-damaged)?\.pt"
OF_RUNS = re.compile(
    rf"{_OF_BOTH}|{_OF_FINETUNING}|checkpoint(-previous|-damaged)?\.pt|best\.pt|finetune|probe|report\.html|\.job"
)
"""Names of what may be in the folder of a pre-training run, or of a classifier."""
OF_CLASSIFIERS = re.compile(rf"{_OF_BOTH}|{_OF_FINETUNING}")
"""Names of what may be in the folder of a classifier, which never replaces a pre-training run."""
OF_RESULTS = re.compile(r"results\.json|predictions\.csv|(confusion|tags|probes)\.png|\.\w+\.\w+\.tmp")
"""Names of what may be in a folder of results."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in the folder of a run: the last one and the one before it.

    If the last one is damaged, the run goes on from the one before.
    """

    folder: Path
    kind: str = "pretraining"
    """What the checkpoints are for: `pretraining` or `finetuning`."""

    def _path(self, suffix: str) -> Path:
        stem = "checkpoint" if self.kind == "pretraining" else "finetune-checkpoint"
        return self.folder / f"{stem}{suffix}.pt"

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self._path("")

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one."""
        return self._path("-previous")

    def exist(self) -> bool:
        """Whether there is a checkpoint, the last one or the one before."""
        return self.last.is_file() or self.previous.is_file()

    def only_previous_is_whole(self) -> bool:
        """Whether the last checkpoint is damaged or missing, and the one before is neither."""
        return not checkpoint.is_whole(self.last) and checkpoint.is_whole(self.previous)

    @property
    def problem(self) -> str:
        """What is wrong with a last checkpoint that is not whole: it is `damaged` or `missing`."""
        return "damaged" if self.last.exists() else "missing"

    def newest_whole(self) -> Path:
        """Return the checkpoint to go on from: the last one, or the one before if that alone is whole."""
        return self.previous if self.only_previous_is_whole() else self.last

    def restore_previous(self) -> None:
        """Let the checkpoint before the last one take its place; a damaged last one is kept beside it."""
        with contextlib.suppress(FileNotFoundError):
            self.last.replace(self._path("-damaged"))
        self.previous.replace(self.last)


def read_config(run: Path) -> dict[str, Any]:
    """Return what config.json in the folder `run` says. Raises `OSError` or `ValueError` if it cannot."""
    values = json.loads(read_regular(run / CONFIG, SETTINGS_LIMIT))
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` for people to read."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def new_folder(
    path: Path, *, force: bool = False, own: re.Pattern[str] = OF_RUNS, lock: FolderLock | None = None
) -> Path:
    """Make the folder `path` and take its `lock`; with `force`, empty a folder that exists.

    Raises DataError if the folder is in use by a job, is not empty without `force`, or holds a name that
    `own` does not match. Only what matches `own` is ever removed.
    """
    check_free(path, own, force)
    path.mkdir(parents=True, exist_ok=True)
    if lock is not None:
        lock.take(path)
    elif is_locked(path):
        raise in_use(path)
    check_free(path, own, force)  # now that no other job changes it
    for file in _contents(path) if force else ():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()
    return path


def check_free(path: Path, own: re.Pattern[str], force: bool) -> None:
    """Raise DataError unless the folder `path` is new, empty, or may be emptied because of `force`."""
    if not path.exists():
        return
    names = sorted(file.name for file in _contents(path)) if path.is_dir() else [path.name]
    foreign = [name for name in names if not own.fullmatch(name)]
    if foreign:
        kind = {OF_RUNS: "run has", OF_CLASSIFIERS: "classifier has", OF_RESULTS: "results have"}[own]
        raise DataError(
            f"{path} holds {foreign[0]!r}, which no {kind}: use another out (on the command line --out)."
        )
    if names and not (force and path.is_dir()):
        resume, option = ("", "") if own is OF_RESULTS else ("go on with it by resume=True, ", " --resume,")
        raise DataError(
            f"{path} already exists and is not empty: use another out, {resume}or replace it by force=True "
            f"(on the command line --out,{option} or --force)."
        )


def _contents(path: Path) -> list[Path]:
    """Return what is in the folder `path` besides its lock, which another job may hold."""
    return [file for file in path.iterdir() if file.name != LOCK]
