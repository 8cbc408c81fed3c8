"""Objects behind URLs such as s3://bucket/name, read and written whole through fsspec."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from operator import call
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from siamusic_fast.errors import ConfigError, DataError, not_installed
from siamusic_fast.files import file_sha256, temporary_name

CHUNK = 8 * 2**20
"""Bytes that are read at a time: what a connection that is cut costs, and the memory that a fetch takes."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_SCHEMES = {
    "s3": ("s3fs", "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("adlfs", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
    "file": ("fsspec", ""),
}
"""Module that each scheme needs, and the variables from which it takes credentials."""
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}
"""Seconds to wait for a connection, and for the next bytes of an answer."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {**_TIMEOUTS, "retries": {"mode": "standard", "total_max_attempts": 2}},
        "max_concurrency": 2,
    },
    "file": {"auto_mkdir": True},
}
"""Arguments of each file system."""
_WAITS = (0.2, 1.0, 4.0)
"""Seconds after which a request is tried again that failed on the way, but not by waiting for an answer."""
_SILENCE = re.compile("Timeout")
"""Names of errors after a time without an answer: trying once more takes that long again."""
_VARIABLES = ("AWS_", "GOOGLE_", "GCLOUD_", "AZURE_", "FSSPEC_")
"""Beginnings of the names of variables by which credentials and endpoints are set."""
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified")
"""What file systems call the value that changes with an object, the best one first."""
_NO_CREDENTIALS = re.compile("Credential|Auth|TokenError|Forbidden")
"""Names of errors that are no `PermissionError` and say that there are no credentials, or wrong ones."""
_NO_BUCKET = re.compile("bucket does not exist|NoSuchBucket|container does not exist|ContainerNotFound")

_Answer = TypeVar("_Answer")


class StorageError(DataError):
    """Object storage cannot be reached, or does not let us in."""


class UnreachableError(StorageError):
    """Object storage does not answer, or not in time. It may do so later."""


class ObjectStatus(NamedTuple):
    """What is known of an object without reading it."""

    size: int
    """Size in bytes."""
    stamp: int
    """Number below 2**63 that changes with the content: of its entity tag, or of when it was modified."""


def is_url(place: object) -> bool:
    """Return whether `place` is text such as s3://bucket/name."""
    return isinstance(place, str) and _URL.match(place) is not None


def joined(url: str, name: str) -> str:
    """Return the URL of the object `name` below `url`."""
    return f"{url.rstrip('/')}/{name}"


class RemoteFolder:
    """The objects below `url`, named by their paths relative to it. Threads may share one, processes may not.

    All methods raise `StorageError` if there is no such bucket, if credentials are missing or wrong, or if
    nothing answers a few times. The constructor raises `ConfigError` for a scheme that is unknown, or whose
    package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        if scheme not in _SCHEMES:
            known = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ConfigError(f"{url!r} begins with none of {known}: give one of those, or a local path.")
        module, self._credentials = _SCHEMES[scheme]
        try:
            self._fs = _file_system(scheme, os.getpid(), _environment())
        except ImportError:
            if scheme == "s3":
                raise not_installed(module, scheme) from None
            raise ConfigError(f"{module} is not installed: run `pip install {module}`.") from None
        self._fs.retries = 1  # s3fs would try each request 5 times, and what reads 5 times that
        self._is_local = scheme == "file"
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")
        self._bucket = self._root if self._is_local else self._root.partition("/")[0]
        if not self._bucket:
            raise ConfigError(f"{url!r} names no bucket: give a URL such as {scheme}://bucket/name.")

    def list(self) -> dict[str, ObjectStatus]:
        """Return all objects below the URL, by their names."""
        found: Mapping[str, Any] = self._ask("", lambda: self._fs.find(self._root, detail=True))
        if not found and not self._is_local:
            self._ask("", lambda: self._fs.info(self._bucket))  # raises if there is no such bucket
        return {
            path[len(self._root) :].strip("/"): _status(info)
            for path, info in found.items()
            if info["type"] == "file" and not path.endswith("/")
        }

    def status(self, name: str) -> ObjectStatus | None:
        """Return what is known of the object `name`, or None if there is none."""
        try:
            info = self._ask(name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        return _status(info) if info["type"] == "file" else None

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of the object `name`.

        Raises `FileNotFoundError` if there is none, `DataError` if it has more than `limit` bytes.
        """
        return b"".join(self.chunks(name, self.size(name, limit)))

    def size(self, name: str, limit: int) -> int:
        """Return the size in bytes of the object `name`. Raises as `read` does."""
        status = self.status(name)
        if status is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", joined(self.url, name))
        if status.size > limit:
            raise DataError(
                f"{joined(self.url, name)} must have at most {limit:,} bytes, and has {status.size:,}."
            )
        return status.size

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the `size` bytes of the object `name`. Raises `FileNotFoundError` if there is none.

        A chunk on which a connection is cut is asked for again. The last one is short if the object is.
        """
        for start in range(0, size, CHUNK):
            span = {"start": start, "end": min(start + CHUNK, size)}
            yield self._ask(name, partial(self._fs.cat_file, self._path(name), **span))

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes of the object `name` from byte `start` on, by one request.

        Raises `FileNotFoundError` if there is none.
        """
        span = {"start": start, "end": start + length}
        part: bytes = self._ask(name, partial(self._fs.cat_file, self._path(name), **span))
        return part

    def put(self, file: Path, name: str) -> None:
        """Make the local `file` the object `name`, which others see whole or not at all.

        Raises `StorageError` if the object, which is read again, then has another SHA-256.
        """
        path = self._path(name)
        folder, slash, last = path.rpartition("/")
        target = f"{folder}{slash}{temporary_name(last)}" if self._is_local else path
        size, sha256 = file.stat().st_size, file_sha256(file)
        self._ask(name, lambda: self._fs.put_file(str(file), target))
        if target != path:
            self._ask(name, lambda: self._fs.mv(target, path))
        digest = hashlib.sha256()
        for chunk in self.chunks(name, size):
            digest.update(chunk)
        status = self.status(name)
        if digest.hexdigest() != sha256 or status is None or status.size != size:
            raise StorageError(
                f"{joined(self.url, name)} is not what was uploaded ({size:,} bytes with SHA-256 {sha256}): "
                f"something else writes there, or the storage is broken."
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove the objects `names`, in that order, those that are there."""
        for name in names:
            try:
                self._ask(name, partial(self._fs.rm_file, self._path(name)))
            except FileNotFoundError:
                continue
            if self._is_local and "/" in name:  # object storage has no folders, and none is to stay here
                with suppress(OSError):
                    Path(self._path(name)).parent.rmdir()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, name: str, request: Callable[[], _Answer]) -> _Answer:
        """Return what `request` returns; it asks fsspec for something about the object `name`.

        What fails at once is tried again after `_WAITS`.
        """
        waits = iter(_WAITS)
        while True:
            try:
                return request()
            except Exception as error:
                failure, wait = self._failure(name, error), next(waits, None)
                silence = _SILENCE.search(type(error).__name__)
                if wait is None or silence or not isinstance(failure, UnreachableError):
                    raise failure from None
            time.sleep(wait)

    def _failure(self, name: str, error: Exception) -> Exception:
        """Return the `StorageError` for what fsspec raised, or `FileNotFoundError` for a missing object."""
        url = joined(self.url, name) if name else self.url
        if isinstance(error, FileNotFoundError):
            if name and not _NO_BUCKET.search(str(error)):
                return FileNotFoundError(errno.ENOENT, "no such object", url)
            return StorageError(
                f"there is no bucket {self._bucket!r} for {url}, or it is not where the credentials lead: "
                f"make it, or give another URL."
            )
        kind, words = type(error).__name__, f"{type(error).__name__}: {error}".rstrip(". ")
        if isinstance(error, PermissionError) or _NO_CREDENTIALS.search(kind):
            remedy = f"set {self._credentials}" if self._credentials else "ask its owner"
            return StorageError(f"{url} does not let us in ({words}): {remedy}.")
        if self._is_local and isinstance(error, OSError):
            return StorageError(
                f"{url} cannot be read or written ({error.strerror or words}): make room or mend that, or "
                f"give another URL."
            )
        return UnreachableError(
            f"{url} cannot be reached ({words}): check the network, and the endpoint if you set one."
        )


def fetch(
    remote: RemoteFolder,
    name: str,
    size: int,
    write: Callable[[bytes], object],
    wait_for: Callable[[Callable[[], bytes]], bytes] = call,
) -> tuple[int, str]:
    """Give `size` bytes of the object `name` to `write`, in parts. Return the size and SHA-256 of all parts.

    `wait_for` calls a function that waits for the next part, and returns that part. Raises `DataError` if
    there is no such object.
    """
    digest, done = hashlib.sha256(), 0
    try:
        chunks = iter(remote.chunks(name, size))
        while chunk := wait_for(lambda: next(chunks, b"")):
            digest.update(chunk)
            write(chunk)
            done += len(chunk)
    except FileNotFoundError:
        raise not_there(remote, name) from None
    return done, digest.hexdigest()


def fetch_small(remote: RemoteFolder, name: str, limit: int, write: Callable[[bytes], object]) -> str:
    """Give the object `name` to `write`, in parts, and return its SHA-256.

    Raises `DataError` if there is no such object, or if it has more than `limit` bytes.
    """
    try:
        size = remote.size(name, limit)
    except FileNotFoundError:
        raise not_there(remote, name) from None
    return fetch(remote, name, size, write)[1]


def not_there(remote: RemoteFolder, name: str) -> DataError:
    """Return the error of an object of a shard set that is missing."""
    return DataError(f"{joined(remote.url, name)} is not there: upload the shard set again.")


@lru_cache(maxsize=4)
def _file_system(scheme: str, process: int, environment: object) -> Any:
    """Return the file system for a scheme. It is made anew in another process or with other variables."""
    import fsspec  # not above: every command imports this module, and few have a URL

    return fsspec.filesystem(
        scheme, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(scheme, {})
    )


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the variables that file systems are set up by."""
    return tuple(sorted(one for one in os.environ.items() if one[0].startswith(_VARIABLES)))


def _status(info: Mapping[str, Any]) -> ObjectStatus:
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
    digest = hashlib.blake2b(stamp.encode(), digest_size=8).digest()
    return ObjectStatus(int(info["size"]), int.from_bytes(digest) >> 1)
