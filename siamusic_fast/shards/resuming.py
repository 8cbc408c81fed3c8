"""The folder that a shard set is packed into, and what lets a stopped packing go on from there.

One packer at a time has the folder, and files of others are never overwritten. While it is being packed, and
until that has ended well, it has a folder .packing with

    lock            what is being packed, as a line of JSON; locked by the packer as long as it lives
    STEM.json       the result of each shard that is finished
    crashed-files   audio files at which every worker process dies, as a list of JSON, if there are any
    permit-TOKEN    lets workers of a cluster pack for the packer that wrote it, see `sharing.py`
    seen-TOKEN      written by such a worker, to see that it reaches this folder
"""

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import soundfile
import soxr

import siamusic_fast
from siamusic_fast.audio.corpus import SPLITS, Corpus
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.scan import ScanResult
from siamusic_fast.errors import DataError
from siamusic_fast.files import (
    LIST_LIMIT,
    MANIFEST_LIMIT,
    SETTINGS_LIMIT,
    atomic_write,
    file_sha256,
    open_regular,
    read_regular,
)
from siamusic_fast.shards.kept_features import KEPT_FEATURES
from siamusic_fast.shards.manifest import FRONTENDS, MANIFEST, REJECTED, TRACKS, Shard
from siamusic_fast.shards.tables import PackedTrack, is_table

UNFINISHED = ".packing"
"""Folder that marks a shard set whose packing has not ended."""
PACK_LOCK = "lock"
CRASHED = "crashed-files"
PERMIT = "permit-[0-9a-f]{16}"
"""Pattern of the name of a file that lets workers of a cluster pack as long as it is there."""
GREETING = "seen-[0-9a-f]{16}"
"""Pattern of the name of a file in which a worker of a cluster writes that it has seen the permit."""

CLEARING: dict[str, Any] = {"clearing": True}
"""Stands in the lock while older files are being removed, so that this goes on after a kill."""
FORCED = "forced"
"""Field of the lock that says whether `force` began the packing; in object storage a random text or none."""

_NO_OPTIONS = {"source", "shards", "inputs", "software"}
"""Fields of the fingerprint that are no options of the command line."""

_STEM = rf"(?:{'|'.join(SPLITS)})(?:-unlabelled)?-\d{{6}}"
_WRITER = r"(?:-[0-9a-f]{8})?"
"""Which worker of a cluster writes a file."""
_TABLES = "|".join(map(re.escape, (MANIFEST, FRONTENDS, TRACKS, REJECTED)))
SET_FILE = re.compile(
    rf"(?P<temporary>\.)?(?:{_STEM}\.(?:tar|idx)|{_TABLES}|{KEPT_FEATURES})(?(temporary){_WRITER}\.tmp)"
)
"""Names of the files of a shard set, and of those that are being written (see `files.temporary_name`)."""
STATE_FILE = re.compile(
    rf"(?P<temporary>\.)?(?:{_STEM}\.json|{CRASHED}|{PERMIT}|{GREETING})(?(temporary){_WRITER}\.tmp)"
)
"""Names of the files in `UNFINISHED` except the lock, and of those that are being written."""


@dataclass(frozen=True)
class Unfinished:
    """How far the packing of a folder has come."""

    finished: int
    """Number of shards that are done."""
    shards: int
    """Number of shards in the plan."""
    forced: bool = False
    """Whether `force` began it, so that `force` goes on with it."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of the tracks of one planned shard."""

    packing: str
    """What it was packed for, as `packing_digest` says it."""
    shard: Shard | None
    """Entry in the manifest; None if no track was fit."""
    tracks: tuple[PackedTrack, ...]
    rejects: tuple[Reject, ...]


def fingerprint(
    corpus: Corpus, found: ScanResult, shards: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that the bytes of a shard set depend on, as plain values.

    Files are identified by name, size, and time of modification or, in a zip, checksum. Versions of software
    are included because another one may decode the same file differently.
    """
    digest = hashlib.sha256()

    def add(text: str) -> None:
        digest.update(f"{text}\0\0".encode("utf-8", "surrogateescape"))

    for track, size, stamp in zip(found.tracks, found.sizes, found.stamps, strict=True):
        labels = "\0".join((track.split, track.genre, track.group, *track.tags))
        add(f"{track.id}\0{track.path}\0{size}\0{stamp}\0{labels}")
    for reject in found.rejects:
        add(f"{reject.path}\0{reject.reason}\0{reject.detail}")
    add("\0".join(corpus.classes))
    source = {"source": corpus.name, "software": software(), "shards": shards, "inputs": digest.hexdigest()}
    return {**settings, **source}


def packing_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a `fingerprint`."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def software() -> str:
    """Return the versions of all programs that the bytes of a shard set depend on."""
    return (
        f"siamusic-fast {siamusic_fast.__version__}, PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}, "
        f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"
    )


def check_free(folder: Path, force: bool) -> None:
    """Raise the `DataError` that `exclusive` would raise for any fingerprint, before the audio is scanned."""
    if (folder / UNFINISHED).is_dir():
        _refuse_foreign(folder / UNFINISHED)
    elif folder.is_dir():
        refuse(folder, None, {}, force, lambda: _held(folder))


@contextmanager
def exclusive(folder: Path, fingerprint: dict[str, Any], force: bool) -> Iterator[None]:
    """Lock `folder` to pack what has this `fingerprint`; its state is kept if the context raises.

    If an unfinished packing with the same fingerprint is there, its finished shards stay. With `force`, the
    shards, indices and tables that are there are removed, unless they belong to an unfinished packing with
    the same fingerprint that `force` began. Raises `DataError` if another process packs into the folder, if
    it holds other files with such names or a folder `UNFINISHED` that no packer made, or, without `force`, if
    it holds a shard set or an unfinished packing with another fingerprint.
    """
    state = folder / UNFINISHED
    state.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(state)
    with packer_lock(folder, state / PACK_LOCK) as lock:
        before = _read(lock, state)
        forced = bool(before and before.pop(FORCED, False))
        try:
            refuse(folder, before, fingerprint, force, lambda: _held(folder))
        except DataError:
            if before is None:
                _remove_lock(state)
            raise
        if before != fingerprint or (force and not forced):
            _write(lock, CLEARING)
            # The manifest goes first, so that no half of a shard set passes for a whole one.
            (folder / MANIFEST).unlink(missing_ok=True)
            _remove_files(folder, SET_FILE)
            _remove_files(state, STATE_FILE)
            _write(lock, {**fingerprint, FORCED: force})
        else:
            _remove_files(state, STATE_FILE, prefix="permit-")  # so that workers of a killed packer stop
            _remove_files(folder, SET_FILE, prefix=".")
        yield
        _remove_files(folder, SET_FILE, prefix=".")  # of workers of a cluster that were killed
        # The lock goes last, so that a kill on the way leaves what the next run can finish.
        _remove_files(state, STATE_FILE)
        _remove_lock(state)


def unfinished(folder: Path) -> Unfinished | None:
    """Return how far the packing of `folder` has come, or None if it has ended or never begun."""
    state = folder / UNFINISHED
    try:
        with io.BufferedReader(open_regular(state / PACK_LOCK, SETTINGS_LIMIT)) as lock:
            values = _read(lock, state)
    except (OSError, DataError):
        return None
    if not values or "shards" not in values:
        return None
    finished = len(list(state.glob("[!.]*.json")))
    return Unfinished(finished, values["shards"], bool(values.get(FORCED)))


def write_result(folder: Path, stem: str, result: ShardResult, writer: str = "") -> None:
    """Note that shard `stem` is finished; its files are on disk already. `writer` is for `atomic_write`."""
    with atomic_write(folder / UNFINISHED / f"{stem}.json", writer) as file:
        file.write(json.dumps(dataclasses.asdict(result)).encode())


def read_result(folder: Path, stem: str) -> ShardResult:
    """Return what `write_result` wrote."""
    values = json.loads(read_regular(folder / UNFINISHED / f"{stem}.json", LIST_LIMIT))
    return ShardResult(
        packing=values["packing"],
        shard=Shard(**values["shard"]) if values["shard"] else None,
        tracks=tuple(PackedTrack(**track | {"tags": tuple(track["tags"])}) for track in values["tracks"]),
        rejects=tuple(Reject(**reject) for reject in values["rejects"]),
    )


def finished_result(folder: Path, stem: str, packing: str, uploaded: bool = False) -> ShardResult | None:
    """Return the result of shard `stem` if it is there for this `packing`, and its tar and index are whole.

    Both are read and hashed, which takes a small part of the time that decoding its tracks took. Those that
    were `uploaded` were checked then, before the result was written.
    """
    try:
        result = read_result(folder, stem)
        shard = result.shard
        whole = (
            uploaded
            or not shard
            or (
                (folder / shard.file).stat().st_size == shard.bytes
                and file_sha256(folder / shard.index) == shard.index_sha256
                and file_sha256(folder / shard.file) == shard.sha256
            )
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole and result.packing == packing else None


def add_crashed_file(folder: Path, path: str) -> None:
    """Note that every worker process dies at the audio file `path`, so that the next run skips it too."""
    paths = crashed_files(folder) | {path}
    with atomic_write(folder / UNFINISHED / CRASHED) as file:
        file.write(json.dumps(sorted(paths)).encode())


def crashed_files(folder: Path) -> frozenset[str]:
    """Return the paths that `add_crashed_file` noted."""
    file = folder / UNFINISHED / CRASHED
    return frozenset(json.loads(read_regular(file, LIST_LIMIT))) if file.exists() else frozenset()


@contextmanager
def packer_lock(place: object, path: Path) -> Iterator[BinaryIO]:
    """Lock the file `path`, so that no other process of this machine packs into `place`."""
    with path.open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that had the lock may have removed the file after it was opened here.
            ours = path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno()))
        except BlockingIOError:
            ours = False
        if not ours:
            raise DataError(f"{place} is being packed by another run: wait for it, or choose another --out.")
        yield lock


@dataclass(frozen=True, kw_only=True)
class Held:
    """What there is in a place that is to be packed into."""

    shard_set: bool
    """Whether that is a shard set, or a part of one."""
    manifest: str
    """Name of the file that has the place of a manifest; empty if there is none."""
    files: Sequence[str]
    """Names of the files that have names of files of a shard set."""


def refuse(
    place: object,
    before: dict[str, Any] | None,
    fingerprint: dict[str, Any],
    force: bool,
    held: Callable[[], Held],
) -> None:
    """Raise `DataError` unless `place`, whose lock says `before`, may be packed into."""
    if before is not None:
        if force or before in (CLEARING, fingerprint):
            return
        raise DataError(
            f"{place} holds unfinished work with {_difference(before, fingerprint)}: use the same options, "
            f"audio and software to go on with it, --force to start over, or another --out."
        )
    found = held()
    if found.shard_set:
        if not force:
            raise DataError(
                f"{place} already holds a shard set: --force packs it anew, --out packs elsewhere."
            )
    elif found.manifest:
        raise DataError(f"{found.manifest} is not the manifest of a shard set: choose another --out.")
    elif found.files:
        raise DataError(
            f"{place} holds files of no shard set that would be overwritten, such as {found.files[0]}: "
            f"choose another --out."
        )


def _held(folder: Path) -> Held:
    manifest = folder / MANIFEST
    return Held(
        shard_set=is_table(folder / TRACKS)
        or (manifest.is_file() and b'"format_version"' in read_regular(manifest, MANIFEST_LIMIT)[:200]),
        manifest=str(manifest) if manifest.exists() else "",
        files=sorted(file.name for file in folder.iterdir() if SET_FILE.fullmatch(file.name)),
    )


def _difference(before: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    """Return in words what is not the same: the options or the software, or else the audio."""
    names = [name for name in fingerprint if before.get(name) != fingerprint[name]]
    if options := [name for name in names if name not in _NO_OPTIONS]:
        return ", ".join(
            f"--{name.replace('_', '-')} {_setting(before.get(name))}, not {_setting(fingerprint[name])}"
            for name in options
        )
    if "software" in names:
        return f"{before.get('software', 'other software')}, not {fingerprint['software']}"
    return "other audio or metadata"


def _setting(value: object) -> str:
    return "unset" if value is None else str(value)


def _refuse_foreign(state: Path) -> None:
    """Raise `DataError` if there are files in `state` but no lock: then no packer made that folder."""
    names = sorted(file.name for file in state.iterdir())
    if names and not (state / PACK_LOCK).is_file():
        raise foreign_state(state, f"it holds {names[0]} but no file {PACK_LOCK}")


def foreign_state(state: object, why: str) -> DataError:
    return DataError(
        f"{state} was not made by siamusic-fast, or is damaged ({why}): move it elsewhere if you need it, "
        f"remove it if not, or choose another --out."
    )


def _remove_files(folder: Path, names: re.Pattern[str], prefix: str = "") -> None:
    """Remove the files in `folder` whose names match and begin with `prefix`."""
    for file in list(folder.iterdir()):
        if names.fullmatch(file.name) and file.name.startswith(prefix):
            file.unlink(missing_ok=True)


def _remove_lock(state: Path) -> None:
    (state / PACK_LOCK).unlink()
    with suppress(OSError):  # somebody else's files are in there
        state.rmdir()


def _read(lock: BinaryIO, state: Path) -> dict[str, Any] | None:
    """Return what is being packed, which the last whole line says; None if nothing has been decided yet.

    Raises `DataError` if no packer wrote that line.
    """
    lock.seek(0)
    content = lock.read()
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        if not content.startswith(b"{"[: len(content)]):
            raise ValueError
        return dict(json.loads(lines[-1])) if lines else None
    except (ValueError, TypeError):
        raise foreign_state(state, f"what {PACK_LOCK} says makes no sense") from None


def _write(lock: BinaryIO, values: dict[str, Any]) -> None:
    """Append `values` as a line. A kill leaves the whole line or one without an end, which does not count."""
    lock.seek(0)
    lock.truncate(lock.read().rfind(b"\n") + 1)  # removes a line that a kill has cut off
    lock.write(json.dumps(values).encode() + b"\n")
    lock.flush()
    os.fsync(lock.fileno())
