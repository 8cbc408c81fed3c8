"""Checkpoints: tensors and plain values with a checksum, written whole or not at all; JSON beside them."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write, temporary_name
from siamusic_fast.folder_lock import LOCK, FolderLock, in_use, is_locked

FORMAT_VERSION = 3
"""The only format that this version writes and reads."""
CONFIG = "config.json"
OF_RUNS = re.compile(
    r"config\.json|checkpoint(-previous|-damaged)?\.pt|best\.pt|classifier\.pt|metrics\.jsonl|events\.out\..*"
    r"|plots|finetune|evaluate|probe|\.job|\.lock|\.[\w-]+\.\w+\.tmp"
)
"""What there is in the folder of a pre-training run, or of a classifier."""
OF_CLASSIFIERS = re.compile(
    r"config\.json|classifier\.pt|metrics\.jsonl|events\.out\..*|plots|evaluate|\.\w+\.\w+\.tmp"
)
"""What there is in the folder of a classifier: one of a pre-training run is never replaced by it."""
OF_RESULTS = re.compile(r"results\.json|predictions\.csv|confusion\.png|\.\w+\.\w+\.tmp")
"""What there is in a folder of results."""


_SEAL = re.compile(rb"\nsiamusic-fast checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})\n\Z")
_AFTER_SHA = 64 + 1
"""Bytes at the end that the SHA-256 does not cover: itself, in hexadecimal, and the end of the line."""
_BLOCK = 2**20
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your share of the disk is used up"}


def save(
    path: Path,
    kind: str,
    values: dict[str, Any],
    *,
    previous: str | None = None,
    remedy: str = "Then run the same command again with --force.",
) -> None:
    """Write `values` (tensors, numbers, text, bytes, and lists and dicts of them) to `path`.

    `kind` says what the file is for ("pretraining", "classifier"), so that `load` can tell them apart. With
    `previous`, the file that `path` was until now keeps that name in its folder.

    The file is what `torch.save` writes, with one line of text after it: the format number and the SHA-256 of
    every byte before it. `torch.load(path, weights_only=True)` reads it and pays no heed to that line;
    `head -c -65 checkpoint.pt | sha256sum` computes the SHA-256 anew.

    Raises DataError, which ends in `remedy`, if the disk is full or the file cannot be written; what `path`
    was before is left whole then.
    """
    with _replaced(path, previous, remedy) as file:
        sealed = _SealedFile(file)
        torch.save({"format": f"siamusic-fast {kind}", **values}, sealed)  # type: ignore[arg-type]
        sealed.close()


def load(path: Path, kind: str, expected: Sequence[str]) -> dict[str, Any]:
    """Return what `save` wrote, with all tensors on the CPU; `expected` names what must be in it.

    Nothing is unpickled before the SHA-256 of the whole file is found right, and then nothing but tensors and
    plain values: a file from elsewhere cannot run code. Raises DataError if there is no such file, if a
    single bit of it has changed, if it is incomplete, or if it is something else.
    """
    try:
        with path.open("rb") as file:
            _check_seal(path, _format_number(file))
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist: this is no {kind} run, or it was stopped too early."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path} is whole and cannot be loaded ({reason}): use another file.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != f"siamusic-fast {kind}":
        raise DataError(f"{path} is no {kind} checkpoint of siamusic-fast (format {found!r}).")
    if missing := [name for name in expected if name not in content]:
        raise DataError(f"{path} is incomplete, it has no {', '.join(missing)}: use the file of another run.")
    return {name: value for name, value in content.items() if name != "format"}


def is_whole(path: Path) -> bool:
    """Whether `path` is a checkpoint, of whatever format, of which every byte is as it was written.

    Raises DataError if it is there and cannot be read: then nobody knows.
    """
    try:
        with path.open("rb") as file:
            return _format_number(file) is not None
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): see to the disk, then try the same again."
        ) from error


def duplicate(path: Path, name: str, *, previous: str | None = None, remedy: str = "") -> None:
    """Give the checkpoint `path` a second `name` in its folder, which stays when `path` is written anew.

    `previous` and `remedy` are as in `save`.
    """
    temporary = path.with_name(temporary_name(name))
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # not every file system has hard links
        with path.open("rb") as source, _replaced(path.with_name(name), previous, remedy) as file:
            shutil.copyfileobj(source, file, _BLOCK)
        return
    _keep(path.with_name(name), previous)
    temporary.replace(path.with_name(name))


class _SealedFile:
    """What `torch.save` writes to: it computes the SHA-256 meanwhile, and `close` writes that at the end.

    `close` raises the first error of the disk: torch would replace one that `write` raises by its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
            self._sha256.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.write(b"\nsiamusic-fast checkpoint, format %d, sha256 " % FORMAT_VERSION)
        if self._error is not None:
            raise self._error
        self._file.write(self._sha256.hexdigest().encode() + b"\n")


def _format_number(file: BinaryIO) -> int | None:
    """Return the format number of a checkpoint, or None if its SHA-256 is wrong or it has none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 200, 0))
    seal = _SEAL.search(file.read())
    if seal is None:
        return None
    file.seek(0)
    sha256, left = hashlib.sha256(), size - _AFTER_SHA
    while block := file.read(min(left, _BLOCK)):
        sha256.update(block)
        left -= len(block)
    return int(seal[1]) if seal[2] == sha256.hexdigest().encode() else None


def _check_seal(path: Path, version: int | None) -> None:
    """Raise DataError if `version` says that the checkpoint `path` is not whole, or not ours to read."""
    if version is None:
        raise DataError(
            f"{path} is damaged or no checkpoint: its content does not have the SHA-256 at its end; use the "
            f"file of another run."
        )
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {version}, this siamusic-fast reads {FORMAT_VERSION}: "
            f"use the version that wrote it."
        )


@contextmanager
def _replaced(path: Path, previous: str | None, remedy: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` once it is on disk; see `save`."""
    # It may be another name of a checkpoint, which a kill has left: opening it would empty both.
    path.with_name(temporary_name(path.name)).unlink(missing_ok=True)
    try:
        with atomic_write(path) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _keep(path, previous)
    except OSError as error:
        reason = _FULL.get(error.errno or 0)
        what = f"{reason}: free some space" if reason else f"{error.strerror or error}: see to that first"
        raise DataError(f"{path} could not be written, {what}. {remedy}") from error


def _keep(path: Path, name: str | None) -> None:
    """Give the file `path`, if there is one, a second `name`; without hard links, that one alone."""
    if name is None:
        return
    temporary = path.with_name(temporary_name(name))
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except FileNotFoundError:
        return
    except OSError:  # not every file system has hard links
        path.replace(path.with_name(name))
        return
    temporary.replace(path.with_name(name))
    temporary.unlink(missing_ok=True)  # a name is not replaced by another one of the same file


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
                f"{path} holds {strangers[0]!r}, which no {kind}: use another out (on the command line "
                f"--out)."
            )
    elif names:
        raise DataError(
            f"{path} already exists and is not empty: use another out, or replace an earlier run with "
            f"force=True (on the command line --out or --force)."
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
