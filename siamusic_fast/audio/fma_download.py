"""FMA's zips from where its authors host them, resumed where the last attempt broke off."""

import fcntl
import hashlib
import http
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from siamusic_fast.errors import DataError
from siamusic_fast.progress import SILENT, Progress

BASE_URL = "https://os.unil.cloud.switch.ch/fma"

SHA1S = {
    "fma_metadata": "f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
    "fma_small": "ade154f733639d52e35e32f5593efe5be76c6d70",
    "fma_medium": "c67b69ea232021025fca9231fc1c7c1a063ab50b",
    "fma_large": "497109f4dd721066b5ce5e5f250ec604dc78939e",
    "fma_full": "0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab",
}
"""Of the zips, in hexadecimal digits. Source of these and of `BASE_URL`: the README of mdeff/fma."""

_METADATA = "fma_metadata"
_CHUNK = 1 << 20
_MB = 1_000_000
_TIMEOUT_SECONDS = 30.0
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each new attempt after one that brought nothing; then we give up."""


def download(
    name: str,
    data_dir: Path,
    *,
    progress: Progress = SILENT,
    base_url: str = BASE_URL,
    sha1s: Mapping[str, str] = SHA1S,
    pauses: tuple[float, ...] = _PAUSES_SECONDS,
) -> list[Path]:
    """Fetch `name`.zip, such as fma_small, and fma_metadata.zip into `data_dir`; return where they are.

    A zip that is there already is checked, and not fetched if its folder is there, unpacked. What has been
    fetched so far is in NAME.zip.part, and the next call goes on from there; so does this one, until attempts
    bring nothing `len(pauses)` times in a row, with `pauses` seconds between. A file gets its name when its
    SHA-1 is right. Raises `DataError` for an unknown name, a server that cannot be reached or breaks off, a
    full disk, another process that fetches the same, and a file with another SHA-1; none is ever deleted.
    """
    if name not in sha1s or name == _METADATA:
        known = ", ".join(known for known in sha1s if known != _METADATA)
        raise DataError(f"{str(name)!r} cannot be downloaded: there are {known}.")
    found = []
    for one in (_METADATA, name):
        if (data_dir / one).is_dir():
            found.append(data_dir / one)
            continue
        path = data_dir / f"{one}.zip"
        if not path.is_file():
            _fetch(f"{base_url}/{path.name}", path, sha1s[one], progress, pauses)
        elif (sha1 := _sha1(path, progress)) != sha1s[one]:
            raise DataError(
                f"{path} has SHA-1 {sha1}, FMA's has {sha1s[one]}: move it away to download it, or leave out "
                f"--download to use it as it is."
            )
        found.append(path)
    return found


def _fetch(url: str, path: Path, sha1: str, progress: Progress, pauses: tuple[float, ...]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            _complete(url, file, part, progress, pauses)
            os.fsync(file.fileno())
            found = _sha1(part, progress)
            if found != sha1:
                raise DataError(
                    f"{url} gave SHA-1 {found}, FMA's has {sha1}: delete {part} to download it again."
                )
            part.replace(path)
    except OSError as error:
        raise DataError(
            f"{part} cannot be written: {error.strerror or error}; the same command goes on from there."
        ) from None


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open `part` to append to it, and have it to oneself."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{part} is being downloaded by another run: wait for it.") from None
        yield file


class _BrokenError(Exception):
    """The connection could not be made, or broke: another attempt may help."""


def _complete(url: str, file: BinaryIO, part: Path, progress: Progress, pauses: tuple[float, ...]) -> None:
    """Append to `file` what it lacks, in as many attempts as it takes while they bring something."""
    left = iter(pauses)
    while True:
        before = file.tell()
        try:
            return _attempt(url, file, part, progress)
        except _BrokenError as error:
            if file.tell() > before:
                left = iter(pauses)
            pause = next(left, None)
            if pause is None:
                raise DataError(
                    f"{url} broke off ({error}): {file.tell() / 1e6:.1f} MB are kept in {part}, the same "
                    f"command goes on from there."
                ) from None
            time.sleep(pause)


def _attempt(url: str, file: BinaryIO, part: Path, progress: Progress) -> None:
    """Append to `file` all that it lacks. Raises `_BrokenError` after a part of it, or nothing."""
    have = file.tell()
    response = _request(url, have)
    if response is None:
        return
    with response:
        place, total = _range(url, response)
        if place > have:
            raise _BrokenError(f"the answer begins at byte {place}, not {have}")
        if total < have:
            raise DataError(
                f"{url} answers with {total / 1e6:.1f} MB, and {part} has {have / 1e6:.1f} MB already: this "
                f"may be the log-in page of a network. The file is kept: try again when you are on line, or "
                f"delete it."
            )
        _check_room(url, part, total - have)
        with progress.task(f"Fetching {part.stem}", -(-total // _MB), "MB") as task:
            task.advance(place // _MB)
            while chunk := _read(response):
                # A server that ignores ranges begins at 0: what is there already is passed over.
                file.write(chunk[max(0, have - place) :])
                file.flush()
                task.advance((place + len(chunk)) // _MB - place // _MB)
                place += len(chunk)
    if place < total:
        raise _BrokenError(f"after {place / 1e6:.1f} of {total / 1e6:.1f} MB")


def _request(url: str, start: int) -> http.client.HTTPResponse | None:
    """Ask for `url` from byte `start` on; None: it has no more."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        if error.code in (403, 404, 410):
            raise DataError(
                f"{url} is not there (HTTP {error.code}): see the README of mdeff/fma for new addresses."
            ) from None
        raise _BrokenError(f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _range(url: str, response: http.client.HTTPResponse) -> tuple[int, int]:
    """Return the byte that the answer begins at, and the size of the whole."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found:
            return int(found[1]), int(found[2])
    elif (length := response.headers.get("Content-Length", "")).isdecimal():
        return 0, int(length)
    raise DataError(f"{url} is served without its size: download it by other means, and put it there.")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)  # read would wait for all of it, and lose what came before a break
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from None


def _check_room(url: str, part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{part.parent} has {free / 1e9:.1f} GB free, the rest of {url} needs {needed / 1e9:.1f} GB: "
            f"make room, or choose another --data-dir."
        )


def _sha1(path: Path, progress: Progress) -> str:
    """Return the SHA-1 of a file in hexadecimal digits."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    done = 0
    total = -(-path.stat().st_size // _MB)
    with path.open("rb") as file, progress.task(f"Checking {path.name}", total, "MB") as task:
        while chunk := file.read(_CHUNK):
            sha1.update(chunk)
            task.advance((done + len(chunk)) // _MB - done // _MB)
            done += len(chunk)
    return sha1.hexdigest()
