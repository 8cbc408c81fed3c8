"""Where the files of a corpus lie: a folder, or a zip that is read without unpacking it."""

import errno
import io
import lzma
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from siamusic_fast.errors import DataError

_METHODS = {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
    getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED),
}
"""Ways of compression that Python reads."""

_DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)
"""What reading a damaged member may raise."""

_ENCRYPTED = 1
"""Flag bit of a zip member."""


class Store(ABC):
    """Files below `root`, named by paths relative to it, with forward slashes.

    All methods raise `DataError` for a path that is absolute or has a part `..`. What a symbolic link outside
    of `root` leads to, and what is no regular file, is not there. For use in another process, open it there.
    """

    top = ""
    """Name of the folder in a zip that stands for it, see `open_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """Name of the folder, or of the zip without its ending."""
        root = self.root if self.root.name not in ("", "..") else self.root.resolve()
        return root.name if self.root.is_dir() else root.stem

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return the bytes of the file `path`, or None if it is not there or cannot be looked at."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open the file `path`, to be read and sought in; a member of a zip is read whole into memory.

        Raises `OSError` if it is not there, cannot be opened, or is damaged within its zip.
        """

    def crc32(self, path: str) -> int | None:
        """Return the CRC-32 of the file `path` if it is known without reading the file, as in a zip."""
        return None

    @abstractmethod
    def paths(self) -> Iterator[str]:
        """Yield the paths of all files, links to files among them, in no particular order.

        Links to folders are not followed. Raises `DataError` for a folder that cannot be listed.
        """


def find_root(source: str | Path, places: Sequence[Path], remedy: str) -> Path:
    """Return `source` in the first of `places` where it is a folder, or a zip, its ending given or not.

    Raises `DataError` with `remedy` if there is none.
    """
    roots = [place / source for place in places]
    for root in roots:
        if root.is_dir():
            return root
        for file in (root, root.with_name(f"{root.name}.zip")):
            if file.is_file():
                return file
    raise DataError(f"no folder and no zip {' or '.join(dict.fromkeys(map(str, roots)))}: {remedy}.")


def open_store(root: Path) -> Store:
    """Return the store at `root`: a folder, or a zip.

    A zip all of whose files lie in one folder stands for that folder. Raises `DataError` if `root` is
    neither, or a zip that is damaged, that Python cannot read, or with names that lead outside of it.
    """
    if root.is_dir():
        return _FolderStore(root)
    try:
        status = root.stat()
        return _zip_store(root, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise DataError(f"no folder and no zip {root}.") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{root} cannot be read as a zip ({error}): get it again, or unpack it and give the folder."
        ) from None


def leads_outside(path: str) -> bool:
    """Return whether `path` cannot be the name of a file below some root."""
    parts = path.split("/")
    return path.startswith("/") or ".." in parts or "\0" in path or {"", "."}.issuperset(parts)


class _FolderStore(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._real_root = os.path.realpath(root)
        self._inside: dict[str, bool] = {}

    def size(self, path: str) -> int | None:
        try:
            status = self._status(path)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        if not stat.S_ISREG(self._status(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return (self.root / path).open("rb")

    def paths(self) -> Iterator[str]:
        for folder, _, names in os.walk(self._real_root, onerror=_refuse_folder):
            below = folder[len(self._real_root) :].strip("/")
            for name in names:
                yield f"{below}/{name}" if below else name

    def _status(self, path: str) -> os.stat_result:
        """Return what is at `path`, links followed. Links outside raise `OSError`."""
        _refuse_outside(self.root, path)
        full = f"{self._real_root}/{path}"
        parent = os.path.dirname(full)  # noqa: PTH120 - called a million times
        if parent not in self._inside:
            self._inside[parent] = self._is_inside(parent)
        status = os.lstat(full)
        inside = self._inside[parent]
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(full)  # noqa: PTH116
            inside = self._is_inside(full)
        if not inside:
            raise OSError(errno.EPERM, "a link that leads outside of the corpus")
        return status

    def _is_inside(self, full: str) -> bool:
        real = os.path.realpath(full)
        return real == self._real_root or real.startswith(f"{self._real_root.rstrip('/')}/")


class _ZipStore(Store):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._zip = zipfile.ZipFile(root)
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        for member in members:
            _refuse_member(root, member)
        tops = {member.filename.partition("/")[0] for member in members}
        in_one_folder = len(tops) == 1 and all("/" in member.filename for member in members)
        self.top = tops.pop() if in_one_folder else ""
        skip = len(self.top) + 1 if self.top else 0
        self._members = {member.filename[skip:]: member for member in members}

    def size(self, path: str) -> int | None:
        _refuse_outside(self.root, path)
        member = self._members.get(path)
        return member.file_size if member else None

    def open(self, path: str) -> BinaryIO:
        _refuse_outside(self.root, path)
        if path not in self._members:
            raise FileNotFoundError(errno.ENOENT, "no such file in the zip")
        try:
            return io.BytesIO(self._zip.read(self._members[path]))
        except (*_DAMAGES, OSError) as error:
            raise OSError(errno.EIO, f"damaged in the zip: {error}") from None

    def crc32(self, path: str) -> int | None:
        member = self._members.get(path)
        return member.CRC if member else None

    def paths(self) -> Iterator[str]:
        yield from self._members


@lru_cache(maxsize=2)
def _zip_store(root: Path, changed: int, size: int) -> _ZipStore:
    """Return the store of a zip; its directory, which may list 100,000 files, is kept for the next caller."""
    return _ZipStore(root)


def _refuse_member(root: Path, member: zipfile.ZipInfo) -> None:
    if leads_outside(member.filename):
        raise DataError(
            f"{root} holds a file named {member.filename!r}, which leads outside of it: do not use this zip."
        )
    if member.compress_type not in _METHODS or member.flag_bits & _ENCRYPTED:
        kind = "encrypted" if member.flag_bits & _ENCRYPTED else f"compression type {member.compress_type}"
        raise DataError(
            f"{root} cannot be read without unpacking ({member.filename}: {kind}): unpack it with "
            f"`7z x {root.name}` and give the folder."
        )


def _refuse_outside(root: Path, path: str) -> None:
    if leads_outside(path):
        raise DataError(f"the path {path!r} leads outside of {root}: name files below it.")


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}.")
