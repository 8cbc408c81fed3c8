"""A cache of shards on a local disk, which all processes of a machine share.

tars/SHA256.tar     a shard that has been fetched and checked
tars/SHA256.part    one that is being fetched, locked by the process that does it as long as it lives
tars/lock           locked while room is made
sets/SHA256/        manifest, tables and indices of a shard set, by the SHA-256 of its manifest
packing/            shards on their way to object storage, see `shards/upload.py`
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import open_regular
from siamusic_fast.storage.remote import RemoteFolder, UnreachableError, fetch, joined

CACHE_VARIABLE = "SIAMUSIC_FAST_CACHE"
SIZE_VARIABLE = "SIAMUSIC_FAST_CACHE_SIZE"
DEFAULT_SIZE = "200GB"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
_POLL_SECONDS = 0.05
"""How often a thread looks whether a shard is here that another one, or another process, fetches."""
_WAITS = (1.0, 5.0, 25.0)
"""Seconds after which a fetch is tried again if nothing answers. Each try has tries of its own."""


def default_folder() -> Path:
    """Return the folder of the variable `CACHE_VARIABLE`, or else siamusic-fast among the user's caches."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home, "siamusic-fast")).absolute()


def default_size() -> int:
    """Return the size of the variable `SIZE_VARIABLE` in bytes, by default 200 GB."""
    return parse_size(os.environ.get(SIZE_VARIABLE) or DEFAULT_SIZE)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 200GB, 1.5 TB or 64GiB. Raises `ConfigError` for other text."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"cache size = {text!r} is none: use a number and a unit (--cache-size 200GB).")
    number, unit, binary = found.groups()
    power = "KMGT".find(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024**power if binary else _UNITS[unit.upper()]))


class FetchStoppedError(Exception):
    """A fetch was told to stop. Whoever told it expects that."""


@dataclass
class Fetching:
    """What the fetches of one reader share."""

    stopped: threading.Event = field(default_factory=threading.Event)
    """Ends all of them when it is set."""
    waited: float = 0.0
    """Seconds that readers have waited for a shard that was not here."""
    ahead: bool = False
    """Whether nobody waits for what is fetched: what another fetches is left to it."""

    def silent(self) -> "Fetching":
        """Return the same for fetches that nobody waits for."""
        return Fetching(stopped=self.stopped, ahead=True)


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Keeps shards of object storage in `folder`, up to `size` bytes. The least recently used make room.

    A shard has the name of its SHA-256, which is checked before it gets that name. So shard sets never mix,
    and sets with equal shards share them. Tables and indices are kept beside them and do not count.
    """

    folder: Path = field(default_factory=default_folder)
    size: int = field(default_factory=default_size)

    def check_holds(self, needed: int, window: str, or_else: str = "") -> None:
        """Raise `ConfigError` if it is too small for the `needed` bytes that are read at a time.

        `window` says why so many are; `or_else` what helps as well as more room, if anything does.
        """
        if needed > self.size:
            enough = -(-needed // 10**9)
            raise ConfigError(
                f"the cache in {self.folder} has {self.size / 1e9:.3g} GB, and {needed / 1e9:.3g} GB are "
                f"read at a time {window}: give it more (on the command line --cache-size {enough}GB)"
                f"{or_else}."
            )

    def path(self, sha256: str) -> Path:
        """Return the path of the shard with this SHA-256, which may be here or not."""
        return self.folder / "tars" / f"{sha256}.tar"

    def use(self, sha256: str) -> bool:
        """Return whether the shard with this SHA-256 is here. If so, it is now the most recently used."""
        now = time.time_ns()  # the system's own time of a file may lag behind, and be that of the file before
        try:
            os.utime(self.path(sha256), ns=(now, now))
        except OSError:
            return False
        return True

    def open(
        self, remote: RemoteFolder, name: str, size: int, sha256: str, fetching: Fetching | None = None
    ) -> FileIO:
        """Return the shard `name` of `remote`, opened; it is fetched unless it is here.

        It stays readable when it makes room for another. Raises `DataError` if it is not there, not what its
        `size` in bytes and its `sha256` say, or if there is no room for it; `FetchStoppedError` if `fetching`
        is stopped.
        """
        path, fetching = self.path(sha256), fetching or Fetching()
        started = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with suppress(FileNotFoundError):
                    file = open_regular(path)
                    if os.fstat(file.fileno()).st_size == size:
                        os.utime(file.fileno())
                        return file
                    file.close()
                    path.unlink(missing_ok=True)
                fetched = self._fetch(remote, name, path, size, sha256, fetching)
                fetching.waited += time.monotonic() - started
                started = time.monotonic()
                if fetched:
                    return fetched
        except OSError as error:
            raise self.unusable(error) from None

    def unusable(self, error: OSError) -> DataError:
        """Return what to tell the user if `error` comes up in the folder."""
        return DataError(
            f"the cache in {self.folder} cannot be used ({error.strerror or error}): make room or mend that, "
            f"or give another folder or a smaller size (on the command line --cache, --cache-size)."
        )

    def _fetch(
        self, remote: RemoteFolder, name: str, path: Path, size: int, sha256: str, fetching: Fetching
    ) -> FileIO | None:
        """Make and open the file `path`; None if another process or thread has done so meanwhile."""
        part = path.with_suffix(".part")
        with FileIO(part, "r+", opener=lambda file, flags: os.open(file, flags | os.O_CREAT, 0o666)) as file:
            while not _try_to_lock(file):
                if fetching.ahead:
                    raise FetchStoppedError
                _pause(fetching, _POLL_SECONDS)
            if not _is_still(part, file):
                return None  # whoever had it has fetched it, or has given up
            if path.exists():  # fetched after the caller had looked
                part.unlink(missing_ok=True)
                return None
            try:
                while not self._make_room(file, part, size):
                    _pause(fetching, _POLL_SECONDS)
                found = _fetch_patiently(remote, name, size, file, fetching)
                if found != (size, sha256):
                    raise DataError(
                        f"{joined(remote.url, name)} is damaged or was changed ({found[0]} bytes with "
                        f"SHA-256 {found[1]}, the manifest says {size} and {sha256}): `siamusic-fast verify "
                        f"{remote.url}` says what else is; upload or pack the shard set again."
                    )
                os.fsync(file.fileno())
                with self._locked():  # so that it does not make room before it is opened
                    part.replace(path)
                    return open_regular(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _make_room(self, file: FileIO, part: Path, size: int) -> bool:
        """Reserve `size` bytes for the new `file` at `part`; what was not used for longest goes first.

        Returns False, and there is no room yet, if others are fetching so much. Raises `ConfigError` for a
        file that is larger than all of the cache, and `OSError` for one that the disk has no room for.
        """
        self.check_holds(size, "in one shard")
        with self._locked():
            others = sorted(_files(part), key=lambda one: one[1])
            used = sum(bytes_ for _, _, bytes_ in others)
            oldest = iter(others)
            while used + size > self.size and (freed := next(map(_removed, oldest), None)) is not None:
                used -= freed
            if used + size > self.size:
                return False
            os.ftruncate(file.fileno(), 0)
            while True:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                    return True
                except OSError as error:
                    if error.errno != errno.ENOSPC or next(map(_removed, oldest), None) is None:
                        raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "tars" / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _fetch_patiently(
    remote: RemoteFolder, name: str, size: int, file: FileIO, fetching: Fetching
) -> tuple[int, str]:
    """Fetch an object into `file`; wait and try again if nothing answers. Return its size and SHA-256."""
    waits = iter(_WAITS)
    while True:
        file.seek(0)
        try:
            return fetch(remote, name, size, partial(_write, file), partial(_wait_for, fetching))
        except UnreachableError:
            seconds = next(waits, None)
            if seconds is None:
                raise
            _pause(fetching, seconds)


def _pause(fetching: Fetching, seconds: float) -> None:
    """Wait. Raises `FetchStoppedError` if that is to end."""
    if fetching.stopped.wait(seconds):
        raise FetchStoppedError


def _try_to_lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(fetching: Fetching, request: Callable[[], bytes]) -> bytes:
    """Return what `request` returns. Raises `FetchStoppedError` as soon as that is to end.

    A thread makes the request, and is left alone with it then, as fsspec gives it up only after its timeouts.
    """
    answer: Future[bytes] = Future()

    def work() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="siamusic-fast-request", daemon=True).start()
    while not answer.done():
        _pause(fetching, 0)
        wait([answer], _POLL_SECONDS)
    _pause(fetching, 0)
    return answer.result()


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _is_still(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _files(besides: Path) -> Iterator[tuple[Path, float, int]]:
    """Yield path, time of last use, and size of all shards, whole or in part, `besides` one."""
    for path in besides.parent.iterdir():
        if path != besides and path.suffix in (".tar", ".part"):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield path, 0.0 if path.suffix == ".part" else status.st_mtime, status.st_size


def _removed(one: tuple[Path, float, int]) -> int:
    """Remove a file and return its size; 0 if a living process fetches it. Open files stay readable."""
    path, _, size = one
    if path.suffix == ".part":
        with suppress(FileNotFoundError), open_regular(path) as file:
            if not _try_to_lock(file):
                return 0
            path.unlink(missing_ok=True)
        return size
    path.unlink(missing_ok=True)
    return size
