"""The folder that a shard set is written to: one packer at a time, nothing foreign overwritten.

While it is being packed, and until that has ended well, it has a folder .packing with

    lock          what is being packed, as a line of JSON; locked by the packer as long as it lives
    STEM.json     what came of each shard that is finished (see `results`)
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import MANIFEST, NORMALISATION
from siamusic_fast.shards.plan import SPLITS
from siamusic_fast.shards.tables import REJECTED, TRACKS

UNFINISHED = ".packing"
"""The folder that marks another one whose packing has not ended."""

_LOCK = "lock"
_CLEARING: dict[str, Any] = {"clearing": True}
"""Stands in the lock while older files are being removed: that goes on after a kill."""

_OF_INPUTS = ("shards", "inputs")
"""What a packing depends on that is no option."""

_TABLES = "|".join(map(re.escape, (MANIFEST, NORMALISATION, TRACKS, REJECTED)))
_SHARD_FILE = rf"(?:{'|'.join(SPLITS)})(?:-unlabelled)?-\d{{6}}\.(?:tar|idx)"
_OWN = re.compile(rf"(?P<temporary>\.)?(?:{_SHARD_FILE}|{_TABLES})(?(temporary)\.tmp)")
"""Names of files that a shard set has, and of those that are being written (see `files.temporary_name`)."""


@dataclass(frozen=True)
class Unfinished:
    """How far the packing of a folder has come."""

    finished: int
    """Shards that are done."""
    shards: int
    """Shards in the plan."""


def check_free(folder: Path, force: bool) -> None:
    """Raise `DataError` if `claim` would, whatever the work: so that nobody waits for the plan to hear it."""
    if folder.is_dir() and not (folder / UNFINISHED).exists():
        _check(folder, None, {}, force)


@contextmanager
def claim(folder: Path, work: dict[str, Any], force: bool) -> Iterator[Path]:
    """Have `folder` to oneself to pack `work`; yield the folder for results, kept if the context raises.

    `work` is all that the result depends on, as plain values: "shards" (how many there are), and others. If
    an unfinished packing of the same `work` is there, what it finished stays. With `force` what is there is
    removed, be it finished or not: shards, indices and tables, nothing else. Raises `DataError` if the folder
    is being packed, if it holds other files with such names, or, without `force`, if it holds a shard set or
    unfinished work that is not `work`.
    """
    results = folder / UNFINISHED
    results.mkdir(parents=True, exist_ok=True)
    with _locked(folder, results / _LOCK) as lock:
        before = _read(lock)
        try:
            _check(folder, before, work, force)
        except DataError:
            if before is None:
                shutil.rmtree(results)
            raise
        if force or before != work:
            _write(lock, _CLEARING)
            _clear(folder, results)
            _write(lock, work)
        else:
            _remove(file for file in _own_files(folder) if file.name.startswith("."))
        yield results
        _finish(results)


def unfinished(folder: Path) -> Unfinished | None:
    """Return how far the packing of `folder` has come, or None if it has ended or never begun."""
    results = folder / UNFINISHED
    try:
        with (results / _LOCK).open("rb") as lock:
            work = _read(lock)
    except OSError:
        return None
    if not work or "shards" not in work:
        return None
    return Unfinished(finished=len(list(results.glob("[!.]*.json"))), shards=work["shards"])


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[BinaryIO]:
    with path.open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who had it may have removed it since it was opened here.
            ours = path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno()))
        except BlockingIOError:
            ours = False
        if not ours:
            raise DataError(f"{folder} is being packed by another run: wait for it, or choose another --out.")
        yield lock


def _check(folder: Path, before: dict[str, Any] | None, work: dict[str, Any], force: bool) -> None:
    if before == _CLEARING or (before is not None and (force or before == work)):
        return
    if before is not None:
        raise DataError(
            f"{folder} holds unfinished work with {_difference(before, work)}: use the same options and "
            f"audio to go on with it, --force to start over, or another --out."
        )
    manifest = folder / MANIFEST
    if manifest.exists():
        if not _is_ours(manifest):
            raise DataError(f"{manifest} is not the manifest of a shard set: choose another --out.")
        if not force:
            raise DataError(
                f"{folder} already holds a shard set: --force packs it anew, --out packs elsewhere."
            )
    elif files := _own_files(folder):
        raise DataError(
            f"{folder} holds files of no shard set that would be overwritten, such as {min(files).name}: "
            f"choose another --out."
        )


def _difference(before: dict[str, Any], work: dict[str, Any]) -> str:
    """Return what is not the same, in words: the options if it is those, or else the audio."""
    options = [name for name in work if name not in _OF_INPUTS and before.get(name) != work[name]]
    words = ", ".join(f"{name} = {before.get(name)}, not {work[name]}" for name in options)
    return words or "other audio or metadata"


def _clear(folder: Path, results: Path) -> None:
    """Remove all files of a shard set: the manifest first, so that no half of one passes for a whole."""
    _remove(sorted(_own_files(folder), key=lambda file: file.name != MANIFEST))
    _remove(file for file in results.iterdir() if file.name != _LOCK)


def _finish(results: Path) -> None:
    """Remove the mark: the lock last, so that a kill on the way leaves what the next run can finish."""
    _remove(file for file in results.iterdir() if file.name != _LOCK)
    (results / _LOCK).unlink()
    results.rmdir()


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink(missing_ok=True)


def _read(lock: BinaryIO) -> dict[str, Any] | None:
    """Return what is being packed, which the last line says; None if nothing has been decided yet."""
    lock.seek(0)
    lines = [line for line in lock.read().splitlines(keepends=True) if line.endswith(b"\n")]
    return dict(json.loads(lines[-1])) if lines else None


def _write(lock: BinaryIO, work: dict[str, Any]) -> None:
    """Add a line: to a file that is open for appending, a kill leaves all of it or none that counts."""
    lock.write(json.dumps(work).encode() + b"\n")
    lock.flush()
    os.fsync(lock.fileno())


def _is_ours(manifest: Path) -> bool:
    """Return whether `manifest` begins like one of ours, damaged or not."""
    return b'"format_version"' in manifest.read_bytes()[:200]


def _own_files(folder: Path) -> list[Path]:
    """Files that a shard set has, complete or not."""
    return [file for file in folder.iterdir() if _OWN.fullmatch(file.name)]
