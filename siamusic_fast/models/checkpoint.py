"""Checkpoints: tensors and plain values with a checksum, written whole or not at all."""

import errno
import hashlib
import io
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from siamusic_fast.errors import DataError
from siamusic_fast.files import WEIGHTS_LIMIT, atomic_write, open_regular, temporary_name

CHECKPOINT_FORMAT = 4
"""The only format that this version writes and reads."""
_LAST_LINE = re.compile(rb"\nsiamusic-fast checkpoint, format (\d{1,9}), sha256 ([0-9a-f]{64})\n\Z")
_AFTER_SHA = 64 + 1
"""Bytes at the end that the SHA-256 does not cover: its own hexadecimal digits and the end of the line."""
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
    every byte before it. `torch.load(path, weights_only=True)` reads it and ignores that line;
    `head -c -65 checkpoint.pt | sha256sum` computes the SHA-256 anew.

    Raises DataError, which ends in `remedy`, if the disk is full or the file cannot be written. The file that
    `path` was before is then left whole.
    """
    import torch

    with _replaced(path, previous, remedy) as file:
        hashed = _HashedFile(file)
        torch.save({"format": f"siamusic-fast {kind}", **values}, hashed)  # type: ignore[arg-type]
        hashed.close()


def load(path: Path, kind: str) -> dict[str, Any]:
    """Return what `save` wrote, with all tensors on the CPU.

    The SHA-256 of the whole file is checked before anything is unpickled, and nothing but tensors and plain
    values is unpickled: a file cannot run code. Raises DataError if there is no such file, if a single bit of
    it has changed, or if it is something else.
    """
    try:
        with open_checkpoint(path) as file:
            version = _format_number(file)
            if version is None:
                raise DataError(
                    f"{path} is damaged or no checkpoint: its content does not have the SHA-256 at its end; "
                    f"use the file of another run."
                )
            if version != CHECKPOINT_FORMAT:
                raise DataError(
                    f"{path} has format {version}, this siamusic-fast reads {CHECKPOINT_FORMAT}: "
                    f"use the version that wrote it."
                )
            file.seek(0)
            import torch  # only now: a file that is missing or damaged is told at once

            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist: this is no {kind} run, or it was stopped too early."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path} is whole and cannot be loaded ({reason}): use another file.") from error
    found = content.pop("format")
    if found != f"siamusic-fast {kind}":
        raise DataError(f"{path} holds {found!r}, not siamusic-fast {kind}: give the folder of such a run.")
    return content


def is_whole(path: Path) -> bool:
    """Whether `path` is a checkpoint of any format in which every byte is as it was written.

    Raises DataError if the file exists and cannot be read.
    """
    try:
        with open_checkpoint(path) as file:
            return _format_number(file) is not None
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): see to the disk, then try the same again."
        ) from error


def open_checkpoint(path: Path) -> BinaryIO:
    """Open a file of weights for reading. Raises `OSError` as `open_regular` does."""
    return io.BufferedReader(open_regular(path, WEIGHTS_LIMIT), _BLOCK)


def duplicate(path: Path, name: str, *, previous: str | None = None, remedy: str = "") -> None:
    """Give the checkpoint `path` a second `name` in its folder, which remains when `path` is written again.

    For `previous` and `remedy` see `save`.
    """
    target = path.with_name(name)
    if linked := _hard_link(path, name):
        _keep(target, previous)
        linked.replace(target)
    else:
        with open_checkpoint(path) as source, _replaced(target, previous, remedy) as file:
            shutil.copyfileobj(source, file, _BLOCK)


class _HashedFile:
    """A file for `torch.save` that computes the SHA-256 of what is written, which `close` appends.

    `close` raises the first error of the disk, because torch would replace an error in `write` by its own.
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
        self.write(b"\nsiamusic-fast checkpoint, format %d, sha256 " % CHECKPOINT_FORMAT)
        if self._error is not None:
            raise self._error
        self._file.write(self._sha256.hexdigest().encode() + b"\n")


def _format_number(file: BinaryIO) -> int | None:
    """Return the format number of a checkpoint, or None if its SHA-256 is wrong or it has none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 200, 0))
    line = _LAST_LINE.search(file.read())
    if line is None:
        return None
    file.seek(0)
    sha256, left = hashlib.sha256(), size - _AFTER_SHA
    while block := file.read(min(left, _BLOCK)):
        sha256.update(block)
        left -= len(block)
    return int(line[1]) if line[2] == sha256.hexdigest().encode() else None


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
    if name is None or not path.exists():
        return
    linked = _hard_link(path, name)
    (linked or path).replace(path.with_name(name))
    if linked:
        linked.unlink(missing_ok=True)  # a name is not replaced by another one of the same file


def _hard_link(path: Path, name: str) -> Path | None:
    """Link the temporary name of `name` to `path` and return it, or None where hard links do not exist."""
    temporary = path.with_name(temporary_name(name))
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:
        return None
    return temporary
