"""Opens a shard set in object storage: its tables are fetched at once, its tars when they are read."""

import fcntl
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.files import (
    LIST_LIMIT,
    MANIFEST_LIMIT,
    SETTINGS_LIMIT,
    TABLE_LIMIT,
    WEIGHTS_LIMIT,
    atomic_write,
    file_sha256,
)
from siamusic_fast.shards.kept_features import KEPT_FEATURES
from siamusic_fast.shards.manifest import (
    FRONTENDS,
    MANIFEST,
    REJECTED,
    TRACKS,
    DamageError,
    Shard,
    ShardSet,
    unchanged_manifest,
)
from siamusic_fast.storage.cache import ShardCache
from siamusic_fast.storage.remote import ObjectStatus, RemoteFolder, fetch_small, joined

_THREADS = 16
"""Small files that are fetched at a time."""
_LIMITS = {
    MANIFEST: MANIFEST_LIMIT,
    TRACKS: TABLE_LIMIT,
    REJECTED: TABLE_LIMIT,
    FRONTENDS: SETTINGS_LIMIT,
}
"""Largest size in bytes of the files that a shard set has once."""


def open_remote(url: str, cache: ShardCache) -> ShardSet:
    """Return the shard set at `url`, with its manifest and tables in the `cache`.

    Raises `DataError` if there is none, if an object is missing or has another size than the manifest says,
    or as `read_manifest` does.
    """
    remote = RemoteFolder(url)
    try:
        content = remote.read(MANIFEST, MANIFEST_LIMIT)
    except FileNotFoundError:
        remote.list()  # raises if there is no such bucket
        raise _no_shards(url) from None
    folder = cache.folder / "sets" / hashlib.sha256(content).hexdigest()
    with _fetching(folder, cache):
        if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != content:
            with atomic_write(folder / MANIFEST) as file:
                file.write(content)
        shard_set = replace(unchanged_manifest(folder, remote.url), url=remote.url, cache=cache)
        _check_listed(shard_set, remote.list())
        _fetch_all(remote, folder, shard_set.tables.items(), TABLE_LIMIT)
    return shard_set


def fetch_small_files(url: str, folder: Path) -> list[str]:
    """Fetch manifest, tables and kept files at `url` into `folder`, as they are. Return the names of all.

    Raises `DataError` if there is no manifest among them, or if one is larger than such files are.
    """
    remote = RemoteFolder(url)
    listed = remote.list()
    if MANIFEST not in listed:
        raise _no_shards(url)

    def fetch_one(name: str, limit: int) -> None:
        with (folder / name).open("wb") as file:
            fetch_small(remote, name, limit, file.write)

    kept = dict.fromkeys((name for name in listed if re.fullmatch(KEPT_FEATURES, name)), WEIGHTS_LIMIT)
    named = [(name, limit) for name, limit in (_LIMITS | kept).items() if name in listed]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda one: fetch_one(*one), named))
    return sorted({name.partition("/")[0] for name in listed})


def fetch_indices(shard_set: ShardSet, shards: Sequence[Shard]) -> None:
    """Fetch the indices of `shards` that are not in the cache yet. Raises `DataError` if one is damaged."""
    assert shard_set.cache is not None
    with _fetching(shard_set.folder, shard_set.cache):
        named = [(shard.index, shard.index_sha256) for shard in shards]
        _fetch_all(RemoteFolder(shard_set.url), shard_set.folder, named, LIST_LIMIT)


def _no_shards(url: str) -> DataError:
    return DataError(
        f"no shards at {url!r}: there is no {joined(url, MANIFEST)}; `siamusic-fast shard SOURCE --out "
        f"{url}` packs some."
    )


def _check_listed(shard_set: ShardSet, listed: Mapping[str, ObjectStatus]) -> None:
    """Raise `DamageError` for a file that is not there, or for a tar of another size."""
    shards = [shard for shards in shard_set.splits.values() for shard in shards]
    sizes: dict[str, int | None] = dict.fromkeys((*shard_set.tables, *(shard.index for shard in shards)))
    for name, size in (sizes | {shard.file: shard.bytes for shard in shards}).items():
        if name not in listed:
            raise DamageError(shard_set.shown(name), "there is no such object")
        if size not in (None, listed[name].size):
            raise DamageError(
                shard_set.shown(name), f"it has {listed[name].size} bytes, the manifest says {size}"
            )


def _fetch_all(remote: RemoteFolder, folder: Path, named: Iterable[tuple[str, str]], limit: int) -> None:
    """Fetch those files, named with their SHA-256, that `folder` does not have already."""

    def fetch_one(name: str, sha256: str) -> None:
        path = folder / name
        if path.is_file() and file_sha256(path, limit) == sha256:
            return
        with atomic_write(path) as file:
            found = fetch_small(remote, name, limit, file.write)
            if found != sha256:
                raise DataError(
                    f"{joined(remote.url, name)} is damaged or was changed (it has SHA-256 {found}, the "
                    f"manifest says {sha256}): upload or pack the shard set again."
                )

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda one: fetch_one(*one), named))


@contextmanager
def _fetching(folder: Path, cache: ShardCache) -> Iterator[None]:
    """Have `folder`, and fetch into it as the only process: the others then find what they need."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise cache.unusable(error) from None
