"""Checkpoints: one file of tensors and plain values, written whole or not at all; JSON beside it to read."""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamusic_fast.errors import DataError
from siamusic_fast.shards.files import atomic_write, temporary_name
from siamusic_fast.training.lock import LOCK, FolderLock, in_use, is_locked

FORMAT_VERSION = 2
CONFIG = "config.json"
OF_RUNS = re.compile(
    r"config\.json|checkpoint\.pt|best\.pt|classifier\.pt|metrics\.jsonl|events\.out\..*"
    r"|plots|finetune|evaluate|probe|\.job|\.lock|\.\w+\.\w+\.tmp"
)
"""What there is in the folder of a pre-training run, or of a classifier."""
OF_CLASSIFIERS = re.compile(
    r"config\.json|classifier\.pt|metrics\.jsonl|events\.out\..*|plots|evaluate|\.\w+\.\w+\.tmp"
)
"""What there is in the folder of a classifier: one of a pre-training run is never replaced by it."""
OF_RESULTS = re.compile(r"results\.json|predictions\.csv|confusion\.png|\.\w+\.\w+\.tmp")
"""What there is in a folder of results."""


def save(path: Path, kind: str, values: dict[str, Any]) -> None:
    """Write `values` (tensors, numbers, text, bytes, and lists and dicts of them) to `path`.

    `kind` says what the file is for ("pretraining", "classifier"), so that `load` can tell them apart.
    """
    content = {"format": f"siamusic-fast {kind}", "format_version": FORMAT_VERSION, **values}
    with atomic_write(path) as file:
        torch.save(content, file)


def load(path: Path, kind: str, expected: Sequence[str]) -> dict[str, Any]:
    """Return what `save` wrote, with all tensors on the CPU; `expected` names what must be in it.

    Nothing but tensors and plain values is unpickled: a file from elsewhere cannot run code. Raises DataError
    if there is no such file, if it is damaged or incomplete, or if it is something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist: this is no {kind} run, or it was stopped too early."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged or no checkpoint: use the file of another run.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != f"siamusic-fast {kind}":
        raise DataError(f"{path} is no {kind} checkpoint of siamusic-fast (format {found!r}).")
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {content.get('format_version')!r}, this siamusic-fast reads "
            f"{FORMAT_VERSION}: use the version that wrote it."
        )
    if missing := [name for name in expected if name not in content]:
        raise DataError(f"{path} is incomplete, it has no {', '.join(missing)}: use the file of another run.")
    return {name: value for name, value in content.items() if not name.startswith("format")}


def duplicate(path: Path, name: str) -> None:
    """Give the checkpoint `path` a second `name` in its folder, which stays when `path` is written anew."""
    temporary = path.with_name(temporary_name(name))
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # not every file system has hard links
        shutil.copyfile(path, temporary)
    temporary.replace(path.with_name(name))


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` for people to read."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def new_folder(
    path: Path, *, force: bool = False, own: re.Pattern[str] = OF_RUNS, lock: FolderLock | None = None
) -> Path:
    """Make the folder of a new run, and take its `lock`; with `force`, in the place of an earlier one.

    Raises DataError if it holds something else than `own` names, of which alone anything is ever removed, or
    if a job is at work in it.
    """
    _check_free(path, own, force)
    path.mkdir(parents=True, exist_ok=True)
    if lock is not None:
        lock.take(path)
    elif is_locked(path):
        raise in_use(path)
    _check_free(path, own, force)  # now that nobody else changes it
    for file in _contents(path) if force else ():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()
    return path


def _check_free(path: Path, own: re.Pattern[str], force: bool) -> None:
    """Raise DataError if `path` is no folder that is empty, or that `force` may empty."""
    if not path.exists():
        return
    names = sorted(file.name for file in _contents(path)) if path.is_dir() else [path.name]
    if force and path.is_dir():
        strangers = [name for name in names if not own.fullmatch(name)]
        if strangers:
            kind = {OF_RUNS: "run has", OF_CLASSIFIERS: "classifier has", OF_RESULTS: "results have"}[own]
            raise DataError(
                f"{path} holds {strangers[0]!r}, which no {kind}: choose another folder with --out."
            )
    elif names:
        raise DataError(
            f"{path} already exists and is not empty: choose another folder with --out, "
            f"or replace an earlier run with --force."
        )


def _contents(path: Path) -> list[Path]:
    """Return what is in the folder `path` besides its lock, which may be another job's."""
    return [file for file in path.iterdir() if file.name != LOCK]


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random generators on the CPU and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
