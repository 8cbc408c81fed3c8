"""The folder that a shard set is written to: one packer at a time, nothing foreign overwritten.

While it is being packed, and until that has ended well, it has a folder .packing with

    lock          what is being packed, as a line of JSON; locked by the packer as long as it lives
    STEM.json     what came of each shard that is finished (see `results`)
    passed-over   files at which a worker process died, as a list of JSON, if there are any
"""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import FRONTENDS, MANIFEST
from siamusic_fast.shards.results import PASSED_OVER
from siamusic_fast.shards.tables import REJECTED, TRACKS, is_table

UNFINISHED = ".packing"
"""The folder that marks another one whose packing has not ended."""

_LOCK = "lock"
_CLEARING: dict[str, Any] = {"clearing": True}
"""Stands in the lock while older files are being removed: that goes on after a kill."""

_FORCED = "forced"
"""Says in the lock, beside the work, whether it has replaced what was there because of `force`."""

_NO_OPTIONS = {"source", "shards", "inputs", "software"}
"""What a packing depends on besides options of the command line."""

_TABLES = "|".join(map(re.escape, (MANIFEST, FRONTENDS, TRACKS, REJECTED)))
_SHARD_FILE = rf"(?:{'|'.join(SPLITS)})(?:-unlabelled)?-\d{{6}}\.(?:tar|idx)"
_OWN = re.compile(rf"(?P<temporary>\.)?(?:{_SHARD_FILE}|{_TABLES})(?(temporary)\.tmp)")
"""Names of files that a shard set has, and of those that are being written (see `files.temporary_name`)."""
_RESULT = rf"(?:{'|'.join(SPLITS)})(?:-unlabelled)?-\d{{6}}\.json"
_OWN_RESULT = re.compile(rf"(?P<temporary>\.)?(?:{_RESULT}|{PASSED_OVER})(?(temporary)\.tmp)")
"""The same in the folder `UNFINISHED`, without the lock."""


@dataclass(frozen=True)
class Unfinished:
    """How far the packing of a folder has come."""

    finished: int
    """Shards that are done."""
    shards: int
    """Shards in the plan."""
    forced: bool = False
    """Whether `force` has begun it, and so goes on with it."""


def check_free(folder: Path, force: bool) -> None:
    """Raise `DataError` if `claim` would, whatever the work: so that nobody waits for the plan to hear it."""
    if (folder / UNFINISHED).is_dir():
        _refuse_foreign(folder / UNFINISHED)
    elif folder.is_dir():
        _check(folder, None, {}, force)


@contextmanager
def claim(folder: Path, work: dict[str, Any], force: bool) -> Iterator[Path]:
    """Have `folder` to oneself to pack `work`; yield the folder for results, kept if the context raises.

    `work` is all that the result depends on, as plain values: "shards" (how many there are), and others. If
    an unfinished packing of the same `work` is there, what it finished stays. With `force` what is there is
    removed, be it finished or not, unless it is unfinished and `force` had begun it: shards, indices and
    tables, nothing else. Raises `DataError` if the folder is being packed, if it holds other files with such
    names or a folder `UNFINISHED` that no packer made, or, without `force`, if it holds a shard set or
    unfinished work that is not `work`.
    """
    results = folder / UNFINISHED
    results.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(results)
    with _locked(folder, results / _LOCK) as lock:
        before = _read(lock, results)
        forced = bool(before and before.pop(_FORCED, False))
        try:
            _check(folder, before, work, force)
        except DataError:
            if before is None:
                _remove_mark(results)
            raise
        if before != work or (force and not forced):
            _write(lock, _CLEARING)
            _clear(folder, results)
            _write(lock, {**work, _FORCED: force})
        else:
            _remove(file for file in _own_files(folder) if file.name.startswith("."))
        yield results
        _finish(results)


def unfinished(folder: Path) -> Unfinished | None:
    """Return how far the packing of `folder` has come, or None if it has ended or never begun."""
    results = folder / UNFINISHED
    try:
        with (results / _LOCK).open("rb") as lock:
            work = _read(lock, results)
    except (OSError, DataError):
        return None
    if not work or "shards" not in work:
        return None
    return Unfinished(
        finished=len(list(results.glob("[!.]*.json"))), shards=work["shards"], forced=work.get(_FORCED, False)
    )


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
            f"{folder} holds unfinished work with {_difference(before, work)}: use the same options, audio "
            f"and software to go on with it, --force to start over, or another --out."
        )
    manifest = folder / MANIFEST
    if is_table(folder / TRACKS) or (manifest.is_file() and _is_ours(manifest)):
        if not force:
            raise DataError(
                f"{folder} already holds a shard set: --force packs it anew, --out packs elsewhere."
            )
    elif manifest.exists():
        raise DataError(f"{manifest} is not the manifest of a shard set: choose another --out.")
    elif files := _own_files(folder):
        raise DataError(
            f"{folder} holds files of no shard set that would be overwritten, such as {min(files).name}: "
            f"choose another --out."
        )


def _difference(before: dict[str, Any], work: dict[str, Any]) -> str:
    """Return what is not the same, in words: the options or the software, or else the audio."""
    names = [name for name in work if before.get(name) != work[name]]
    options = [name for name in names if name not in _NO_OPTIONS]
    if options:
        return ", ".join(
            f"--{name.replace('_', '-')} {_setting(before.get(name))}, not {_setting(work[name])}"
            for name in options
        )
    if "software" in names:
        return f"{before.get('software', 'other software')}, not {work['software']}"
    return "other audio or metadata"


def _setting(value: object) -> str:
    return "unset" if value is None else str(value)


def _refuse_foreign(results: Path) -> None:
    """Raise `DataError` if there are files in `results`, but no lock: then no packer made that folder."""
    names = sorted(file.name for file in results.iterdir())
    if names and _LOCK not in names:
        raise _foreign(results, f"it holds {names[0]} but no {_LOCK}")


def _foreign(results: Path, why: str) -> DataError:
    return DataError(
        f"{results} was not made by siamusic-fast, or is damaged ({why}): move it elsewhere if you need it, "
        f"remove it if not, or choose another --out."
    )


def _clear(folder: Path, results: Path) -> None:
    """Remove all files of a shard set: the manifest first, so that no half of one passes for a whole."""
    _remove(sorted(_own_files(folder), key=lambda file: file.name != MANIFEST))
    _remove(_own_results(results))


def _finish(results: Path) -> None:
    """Remove the mark: the lock last, so that a kill on the way leaves what the next run can finish."""
    _remove(_own_results(results))
    _remove_mark(results)


def _remove_mark(results: Path) -> None:
    (results / _LOCK).unlink()
    with suppress(OSError):  # somebody else's files are in there
        results.rmdir()


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink(missing_ok=True)


def _read(lock: BinaryIO, results: Path) -> dict[str, Any] | None:
    """Return what is being packed, which the last whole line says; None if nothing has been decided yet.

    Raises `DataError` if that is no line of ours.
    """
    lock.seek(0)
    content = lock.read()
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        if not content.startswith(b"{"[: len(content)]):
            raise ValueError
        return dict(json.loads(lines[-1])) if lines else None
    except (ValueError, TypeError):
        raise _foreign(results, f"what {_LOCK} says makes no sense") from None


def _write(lock: BinaryIO, work: dict[str, Any]) -> None:
    """Add a line: to a file that is open for appending, a kill leaves all of it or none that counts."""
    lock.seek(0)
    lock.truncate(lock.read().rfind(b"\n") + 1)  # of the line that a kill has cut
    lock.write(json.dumps(work).encode() + b"\n")
    lock.flush()
    os.fsync(lock.fileno())


def _is_ours(manifest: Path) -> bool:
    """Return whether `manifest` begins like one of ours, damaged or not."""
    return b'"format_version"' in manifest.read_bytes()[:200]


def _own_files(folder: Path) -> list[Path]:
    """Files that a shard set has, complete or not."""
    return [file for file in folder.iterdir() if _OWN.fullmatch(file.name)]


def _own_results(results: Path) -> list[Path]:
    """Files that `results` has written, complete or not."""
    return [file for file in results.iterdir() if _OWN_RESULT.fullmatch(file.name)]
