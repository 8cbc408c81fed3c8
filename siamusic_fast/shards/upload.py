"""Packing into object storage: a shard is written into a work folder, uploaded whole, and removed there.

The storage alone knows what is finished, so the same command goes on from any machine. While a set is packed,
and until that has ended well, there is, below its URL,

    .packing/lock           what is being packed, as JSON
    .packing/STEM.json      the result of each shard whose tar and index are uploaded and checked
    .packing/crashed-files  as in a folder, see `resuming.py`

and the manifest comes last. Object storage has no locks. On one machine, a second packer with the same URL is
refused. On another machine, one with the same settings packs the same bytes into the same objects, one with
others is refused, and one with `force` takes the lock over: each packer looks whether it still has the lock
before every upload, and ends if not. An upload that has begun by then still ends.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siamusic_fast.errors import DataError
from siamusic_fast.files import LIST_LIMIT, SETTINGS_LIMIT, atomic_write
from siamusic_fast.shards.manifest import MANIFEST, REJECTED, TRACKS, Shard
from siamusic_fast.shards.resuming import (
    CLEARING,
    CRASHED,
    FORCED,
    PACK_LOCK,
    SET_FILE,
    STATE_FILE,
    UNFINISHED,
    Held,
    foreign_state,
    packer_lock,
    read_result,
    refuse,
)
from siamusic_fast.shards.tables import TRACKS_HEADER
from siamusic_fast.storage.cache import default_folder
from siamusic_fast.storage.remote import ObjectStatus, RemoteFolder, joined

_THREADS = 16
"""Results that are fetched at a time."""
_STATE_LOCK = f"{UNFINISHED}/{PACK_LOCK}"

Listed = Mapping[str, ObjectStatus]


def work_folder(url: str) -> Path:
    """Return the folder in the cache in which shards are written that go to `url`."""
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return default_folder() / "packing" / name


def check_remote_free(url: str, force: bool) -> None:
    """Raise the `DataError` that `exclusive_remote` would raise for any fingerprint."""
    remote = RemoteFolder(url)
    listed = remote.list()
    if _lock_of(remote, listed) is None:
        refuse(url, None, {}, force, lambda: _held(remote, listed))


@contextmanager
def exclusive_remote(url: str, fingerprint: dict[str, Any], force: bool) -> Iterator[Path]:
    """Give the work folder to pack what has this `fingerprint`; afterwards upload its tables and manifest.

    The folder has the results of the shards that are finished. Errors, and what `force` removes, are those of
    `resuming.exclusive`. If the context raises, the work folder and the state in the storage stay.
    """
    remote, work = RemoteFolder(url), work_folder(url)
    work.parent.mkdir(parents=True, exist_ok=True)
    with packer_lock(url, work.with_suffix(".lock")):
        shutil.rmtree(work, ignore_errors=True)
        (work / UNFINISHED).mkdir(parents=True)
        listed = remote.list()
        before = _lock_of(remote, listed)
        forced = before.pop(FORCED, "") if before else ""
        refuse(url, before, fingerprint, force, lambda: _held(remote, listed))
        if before != fingerprint or (force and not forced):
            _put_lock(remote, work, CLEARING)
            # The manifest goes first, so that no half of a shard set passes for a whole one.
            remote.remove([MANIFEST, *_set_files(listed), *_state_files(listed)])
            _put_lock(remote, work, {**fingerprint, FORCED: secrets.token_hex(8) if force else ""})
        else:
            _put_lock(remote, work, {**fingerprint, FORCED: forced})
            _fetch_results(remote, work, listed)
        yield work
        for name in (TRACKS, REJECTED, MANIFEST):
            _put(remote, work, name)
        remote.remove([*_state_files(remote.list()), _STATE_LOCK])
        shutil.rmtree(work, ignore_errors=True)


def upload_shard(work: Path, url: str, shard: Shard) -> None:
    """Upload tar and index of `shard`, and remove them from `work`.

    Raises `DataError` if the packing that `work` belongs to does not have the lock in the storage any more.
    """
    for name in (shard.file, shard.index):
        _put(RemoteFolder(url), work, name)
        (work / name).unlink()


def upload_state(work: Path, url: str, name: str) -> None:
    """Upload a file of the state, such as a shard's result. Raises `DataError` as `upload_shard` does."""
    _put(RemoteFolder(url), work, f"{UNFINISHED}/{name}")


def _put(remote: RemoteFolder, work: Path, name: str) -> None:
    """Upload the file `name` in `work` if the lock in the storage is still that of `work`."""
    try:
        ours = remote.read(_STATE_LOCK, SETTINGS_LIMIT) == (work / _STATE_LOCK).read_bytes()
    except FileNotFoundError:
        ours = False
    if not ours:
        raise DataError(
            f"{remote.url} is not being packed by this run any more: another one has ended, or started over "
            f"with --force. `siamusic-fast inspect {remote.url}` says whether it has ended."
        )
    remote.put(work / name, name)


def _put_lock(remote: RemoteFolder, work: Path, values: dict[str, Any]) -> None:
    path = work / _STATE_LOCK
    with atomic_write(path) as file:
        file.write(json.dumps(values).encode() + b"\n")
    remote.put(path, _STATE_LOCK)


def _lock_of(remote: RemoteFolder, listed: Listed) -> dict[str, Any] | None:
    """Return what is being packed, or None if nothing is. Raises `DataError` if no packer wrote that."""
    state = f"{remote.url}/{UNFINISHED}"
    if _STATE_LOCK not in listed:
        names = sorted(name for name in listed if name.startswith(f"{UNFINISHED}/"))
        # An upload that has begun when another packer ends leaves its result beside the whole set.
        if names and not (MANIFEST in listed and set(names) <= set(_state_files(listed))):
            raise foreign_state(state, f"it holds {names[0]} but no {PACK_LOCK}")
        return None
    try:
        return dict(json.loads(remote.read(_STATE_LOCK, SETTINGS_LIMIT)))
    except (ValueError, TypeError):
        raise foreign_state(state, f"what {PACK_LOCK} says makes no sense") from None


def _held(remote: RemoteFolder, listed: Listed) -> Held:
    def begins(name: str, size: int) -> bytes:
        return b"".join(remote.chunks(name, min(size, listed[name].size))) if name in listed else b""

    return Held(
        shard_set=begins(TRACKS, len(TRACKS_HEADER)) == TRACKS_HEADER
        or b'"format_version"' in begins(MANIFEST, 200),
        manifest=joined(remote.url, MANIFEST) if MANIFEST in listed else "",
        files=sorted(_set_files(listed)),
    )


def _set_files(listed: Listed) -> list[str]:
    return [name for name in listed if SET_FILE.fullmatch(name)]


def _state_files(listed: Listed) -> list[str]:
    return [
        name for name in listed if STATE_FILE.fullmatch(name.removeprefix(f"{UNFINISHED}/")) and "/" in name
    ]


def _fetch_results(remote: RemoteFolder, work: Path, listed: Listed) -> None:
    """Fetch the results of the shards that are finished; those whose files are not there do not count."""

    def fetch_one(name: str) -> None:
        path = work / name
        path.write_bytes(remote.read(name, LIST_LIMIT))
        if path.name == CRASHED:
            return
        try:
            shard = read_result(work, path.stem).shard
        except (ValueError, TypeError, KeyError):
            path.unlink()
            return
        if shard and (listed.get(shard.file, (0,))[0] != shard.bytes or shard.index not in listed):
            path.unlink()

    names = [name for name in _state_files(listed) if name.endswith((".json", CRASHED))]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(fetch_one, names))
