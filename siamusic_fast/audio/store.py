"""Opens the files of a corpus: in a folder, in a zip that is not unpacked, or in object storage."""

import errno
import lzma
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from siamusic_fast.errors import DataError
from siamusic_fast.storage.remote import ObjectStatus, RemoteFolder, is_url, joined

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
"""Compression types that Python reads."""
_DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)
"""Errors that reading a damaged member of a zip may raise."""
_MAX_BYTES_IN_MEMORY = 1 << 26
"""A larger member of a zip, or a larger object, is put into a temporary file rather than into memory."""

_ENCRYPTED_FLAG = 1
_UTF8_FLAG = 1 << 11
"""Flag of a member whose name is UTF-8; without it, the name is of code page 437."""
_UNIX = 3
"""Number of the system on which a member was made."""

_OUTSIDE = "a link that leads outside of the corpus"


class FileStatus(NamedTuple):
    """What is known of a file without reading it."""

    size: int
    """Size in bytes."""
    stamp: int
    """Number that changes with the content, below 2**63: when the file was modified, its CRC-32 in a zip, or
    that of an object, see `ObjectStatus`."""
    crc32: int | None = None
    """CRC-32 of the content, where it is known: in a zip."""


class Store(ABC):
    """Files below `root`, named by paths relative to it, with forward slashes.

    Paths are text in UTF-8, whatever the locale; bytes that are not UTF-8 are kept as by `surrogateescape`.
    `status`, `size` and `open` raise `DataError` for a path that is absolute or has a part `..`. A symbolic
    link that leads out of `root`, and anything but a regular file, counts as not there. A store does not go
    to another process: open it there.
    """

    top = ""
    """Name of the only folder in a zip, which stands for the zip, see `open_store`."""

    def __init__(self, root: Path | str) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """Name of the folder, or of the zip without its ending, as text like paths."""
        root = Path(self.root)
        root = root if root.name not in ("", "..") else root.resolve()
        return _text(os.fsencode(root.name if root.is_dir() else root.stem))

    @abstractmethod
    def status(self, path: str) -> FileStatus | None:
        """Return what is known of the file `path`, or None if it is not there or cannot be looked at."""

    def size(self, path: str) -> int | None:
        """Return the size of the file `path` in bytes, or None as `status` does."""
        status = self.status(path)
        return status.size if status else None

    def size_now(self, path: str) -> int | None:
        """Return `size`, asked anew where `status` comes of a list that was made before."""
        return self.size(path)

    def is_outside(self, path: str) -> bool:
        """Return whether `path` is there, but leads to something outside of `root`."""
        return leads_outside(path)

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open the file `path`, to be read and sought in; a member of a zip is unpacked first.

        An object is fetched first. Raises `OSError` if it is not there, cannot be opened, or is damaged
        within its zip (`EBADMSG`), and `StorageError` if object storage fails.
        """

    def read_part(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes of the file `path` from byte `start` on, fewer at its end; errors as `open`.

        Of an object, nothing else is fetched.
        """
        with self.open(path) as file:
            file.seek(start)
            return file.read(length)

    def block(self, path: str) -> str:
        """Return the name of what is read as a whole when `path` is read."""
        return path

    @abstractmethod
    def paths(self) -> Iterator[str]:
        """Yield the paths of all files, links to files among them, in no particular order.

        Links to folders are not followed. Files that systems put beside music are left out: `__MACOSX`, and
        folders and files that begin with a dot. Raises `DataError` for a folder that cannot be listed.
        """


def find_root(source: str | Path, places: Sequence[Path], remedy: str) -> Path:
    """Return `source` in the first of `places` where it is a folder or a zip. The ending may be left out.

    Raises `DataError` with `remedy` if there is none, and for a URL, which only `folder` takes.
    """
    if is_url(source):
        raise DataError(
            f"{source} is read as a folder of audio: name its classes with --labels, a CSV file or the word "
            f"folders, or copy it to a local disk."
        )
    roots = [place / source for place in places]
    for root in roots:
        if root.is_dir():
            return root
        for file in (root, root.with_name(f"{root.name}.zip")):
            if file.is_file():
                return file
    raise DataError(f"no folder and no zip {' or '.join(dict.fromkeys(map(str, roots)))}: {remedy}.")


def open_store(root: Path | str, in_tables: bool = False) -> Store:
    """Return the store at `root`: a folder, a zip or the URL of a folder; with `in_tables`, that of tables.

    A zip all of whose files lie in one folder stands for that folder. Raises `DataError` if `root` is
    neither, or a zip that is damaged, that Python cannot read, or with names that lead outside of it.
    """
    if isinstance(root, str) and is_url(root):
        return _RemoteStore(root)
    root = Path(root)
    if in_tables:
        from siamusic_fast.audio.parquet import TableStore

        return TableStore(root)
    if root.is_dir():
        return _FolderStore(root)
    try:
        status = root.stat()
        return _cached_zip_store(root, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise DataError(f"no folder and no zip {root}: give the path of the audio.") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{root} cannot be read as a zip ({error}): get it again, or unpack it and give the folder."
        ) from None


def local_name(name: str) -> str:
    """Return a path or name of a `Store` as text for `open`, in the encoding of this process."""
    return os.fsdecode(path_bytes(name))


def path_bytes(path: str) -> bytes:
    """Return a path or name of a `Store` as bytes on disk, whatever the locale."""
    return path.encode("utf-8", "surrogateescape")


def leads_outside(path: str) -> bool:
    """Return whether `path` cannot be the name of a file below some root."""
    if path[:1] not in "./" and "/." not in path and "\0" not in path:
        return False  # fast, since there may be millions
    parts = path.split("/")
    return path.startswith("/") or ".." in parts or "\0" in path or {"", "."}.issuperset(parts)


class _FolderStore(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._real_root = os.fsencode(os.path.realpath(root))
        self._inside: dict[bytes, bool] = {}

    def status(self, path: str) -> FileStatus | None:
        with suppress(OSError):
            status = self._stat(path)
            if stat.S_ISREG(status.st_mode):
                return FileStatus(status.st_size, status.st_mtime_ns % 2**63)
        return None

    def is_outside(self, path: str) -> bool:
        try:
            self._stat(path)
        except OSError as error:
            return error.strerror == _OUTSIDE
        except DataError:
            return True
        return False

    def open(self, path: str) -> BinaryIO:
        if not stat.S_ISREG(self._stat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return open(self._full(path), "rb")  # noqa: PTH123 - a path in bytes

    def paths(self) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise DataError(f"{os.fsdecode(error.filename)} cannot be listed: {error.strerror}.")

        for folder, folders, names in os.walk(self._real_root, onerror=refuse):
            folders[:] = (name for name in folders if not _is_litter(_text(name)))
            below = _text(folder[len(self._real_root) :].strip(b"/"))
            for name in map(_text, names):
                if not _is_litter(name):
                    yield f"{below}/{name}" if below else name

    def _full(self, path: str) -> bytes:
        return b"%b/%b" % (self._real_root.rstrip(b"/"), path_bytes(path))

    def _stat(self, path: str) -> os.stat_result:
        """Return what is at `path`, links followed. Links outside raise `OSError`."""
        _refuse_outside(self.root, path)
        full = self._full(path)
        parent = os.path.dirname(full)  # noqa: PTH120 - called a million times
        if parent not in self._inside:
            self._inside[parent] = self._is_inside(parent)
        status = os.lstat(full)
        inside = self._inside[parent]
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(full)  # noqa: PTH116
            inside = self._is_inside(full)
        if not inside:
            raise OSError(errno.EPERM, _OUTSIDE)
        return status

    def _is_inside(self, full: bytes) -> bool:
        real = os.path.realpath(full)
        return real == self._real_root or real.startswith(self._real_root.rstrip(b"/") + b"/")


class _RemoteStore(Store):
    """Files behind a URL. They are listed once, when the status of one is asked for."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._remote = RemoteFolder(root)
        self._listed: dict[str, ObjectStatus] | None = None

    @property
    def name(self) -> str:
        return self._remote.url.rpartition("/")[2]

    def status(self, path: str) -> FileStatus | None:
        _refuse_outside(self.root, path)
        found = self._list().get(path)
        return FileStatus(found.size, found.stamp) if found else None

    def size_now(self, path: str) -> int | None:
        _refuse_outside(self.root, path)
        found = self._remote.status(path)
        return found.size if found else None

    def open(self, path: str) -> BinaryIO:
        size = self.size_now(path)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", joined(self._remote.url, path))
        file = tempfile.SpooledTemporaryFile(_MAX_BYTES_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            for chunk in self._remote.chunks(path, size):
                file.write(chunk)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return cast(BinaryIO, file)

    def read_part(self, path: str, start: int, length: int) -> bytes:
        _refuse_outside(self.root, path)
        return self._remote.read_part(path, start, length)

    def paths(self) -> Iterator[str]:
        yield from (path for path in self._list() if not (leads_outside(path) or _is_litter(path)))

    def _list(self) -> dict[str, ObjectStatus]:
        if self._listed is None:
            self._listed = self._remote.list()
        return self._listed


class _ZipStore(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._zip = zipfile.ZipFile(root)
        named = {name: member for name, member in _names(self._zip.infolist()) if not name.endswith("/")}
        for name, member in named.items():
            _refuse_member(root, name, member)
        names = [name for name in named if not _is_litter(name)]
        tops = {name.partition("/")[0] for name in names}
        if len(tops) == 1 and all("/" in name for name in names):
            self.top = tops.pop()
        above = f"{self.top}/" if self.top else ""
        self._members = {
            name.removeprefix(above): member for name, member in named.items() if name.startswith(above)
        }

    def status(self, path: str) -> FileStatus | None:
        _refuse_outside(self.root, path)
        member = self._members.get(path)
        return FileStatus(member.file_size, member.CRC, member.CRC) if member else None

    def open(self, path: str) -> BinaryIO:
        _refuse_outside(self.root, path)
        if path not in self._members:
            raise FileNotFoundError(errno.ENOENT, "no such file in the zip")
        file = tempfile.SpooledTemporaryFile(_MAX_BYTES_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            with self._zip.open(self._members[path]) as packed:
                shutil.copyfileobj(packed, file)
        except (*_DAMAGE_ERRORS, OSError) as error:
            file.close()
            code = error.errno if isinstance(error, OSError) else None
            if code == errno.ENOSPC:
                raise OSError(errno.EBADMSG, "no room to unpack it: set TMPDIR to a larger disk") from None
            if code not in (None, errno.EINVAL):
                raise  # the zip itself cannot be read
            raise OSError(errno.EBADMSG, f"damaged in the zip: {error}") from None
        file.seek(0)
        return cast(BinaryIO, file)

    def paths(self) -> Iterator[str]:
        yield from (path for path in self._members if not _is_litter(path))


@lru_cache(maxsize=2)
def _cached_zip_store(root: Path, changed: int, size: int) -> _ZipStore:
    """Return the store of a zip. Its directory may list 100,000 files and is kept for the next caller."""
    return _ZipStore(root)


def _names(members: Sequence[zipfile.ZipInfo]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yield the names that `members` are meant to have, with the members.

    A name that is valid UTF-8 is read as UTF-8, even if the flag for it is missing. Backslashes separate
    folders if the zip was not made on Unix, or if no name in it has a forward slash.
    """
    no_slash = not any("/" in member.filename for member in members)
    for member in members:
        name = member.filename
        if not member.flag_bits & _UTF8_FLAG:
            with suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        if no_slash or member.create_system != _UNIX:
            name = name.replace("\\", "/")
        yield name, member


def _refuse_member(root: Path, name: str, member: zipfile.ZipInfo) -> None:
    if leads_outside(name):
        raise DataError(
            f"{root} holds a file named {name!r}, which leads outside of it: do not use this zip."
        )
    encrypted = member.flag_bits & _ENCRYPTED_FLAG
    if encrypted or member.compress_type not in _COMPRESSIONS:
        kind = "encrypted" if encrypted else f"compression type {member.compress_type}"
        raise DataError(
            f"{root} cannot be read without unpacking ({member.filename}: {kind}): unpack it with "
            f"`7z x {root.name}` and give the folder."
        )


def _refuse_outside(root: Path | str, path: str) -> None:
    if leads_outside(path):
        raise DataError(f"the path {path!r} leads outside of {root}: name files below it.")


def _is_litter(path: str) -> bool:
    """Return whether any part of `path` is hidden, or the folder that macOS adds to zips."""
    return any(part == "__MACOSX" or (part[:1] == "." and part != ".") for part in path.split("/"))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
