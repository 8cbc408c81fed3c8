"""Downloads FMA's zips from where its authors host them, and resumes after a break."""

import fcntl
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from siamusic_fast.audio.fma import METADATA
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
"""SHA-1 of each zip, in hexadecimal digits. They and `BASE_URL` are from the README of mdeff/fma."""

_MB = 1_000_000
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses after attempts that brought nothing. After one pause of each length, we give up."""


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

    A zip that exists is checked. A zip whose unpacked folder exists is not fetched. The content so far is in
    NAME.zip.part, and the next call goes on from there. After a break, this call tries again, up to
    `len(pauses)` times in a row if they bring nothing, with these seconds between. A file gets its name
    when its SHA-1 is right. No file is ever deleted. Raises `DataError` for an unknown name, a server that
    cannot be reached or breaks off, a full disk, another process that fetches the same, and another SHA-1.
    """
    if name not in sha1s or name == METADATA:
        known = ", ".join(known for known in sha1s if known != METADATA)
        raise DataError(f"{str(name)!r} cannot be downloaded: there are {known}.")
    found = []
    for one in (METADATA, name):
        folder, path = data_dir / one, data_dir / f"{one}.zip"
        if not folder.is_dir() and not path.is_file():
            _fetch(f"{base_url}/{path.name}", path, sha1s[one], progress, pauses)
        elif not folder.is_dir() and (sha1 := _sha1(path, progress)) != sha1s[one]:
            raise DataError(
                f"{path} has SHA-1 {sha1}, FMA's has {sha1s[one]}: move it away to download it, or leave out "
                f"--download to use it as it is."
            )
        found.append(folder if folder.is_dir() else path)
    return found


def _fetch(url: str, path: Path, sha1: str, progress: Progress, pauses: tuple[float, ...]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            lock_part(file, part)
            _complete(url, file, part, progress, pauses)
            os.fsync(file.fileno())
            if (found := _sha1(part, progress)) != sha1:
                raise DataError(
                    f"{url} gave SHA-1 {found}, FMA's has {sha1}: delete {part} to download it again."
                )
            part.replace(path)
    except OSError as error:
        raise _not_written(part, error) from None


def lock_part(file: BinaryIO, part: Path) -> None:
    """Keep other runs from appending to `part`, which is open as `file`, until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{part} is being downloaded by another run: wait for it.") from None


def _not_written(part: Path, error: OSError) -> DataError:
    return DataError(
        f"{part} cannot be written: {error.strerror or error}; the same command goes on from there."
    )


def _complete(url: str, file: BinaryIO, part: Path, progress: Progress, pauses: tuple[float, ...]) -> None:
    """Append to `file` what it lacks. Attempts are repeated while they bring something."""
    left = list(pauses)
    while True:
        before = file.tell()
        try:
            return _attempt(url, file, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return None  # there is no more
            if error.code in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise DataError(
                    f"{url} is not there (HTTP {error.code}): see the README of mdeff/fma for new addresses."
                ) from None
            reason = f"HTTP {error.code}"
        except (OSError, HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if file.tell() > before:
            left = list(pauses)
        if not left:
            raise DataError(
                f"{url} broke off ({reason}): {file.tell() / 1e6:.1f} MB are kept in {part}, the same "
                f"command goes on from there."
            )
        time.sleep(left.pop(0))


def _attempt(url: str, file: BinaryIO, part: Path, progress: Progress) -> None:
    """Append to `file` all that it lacks.

    Raises `OSError` or `HTTPException` if the connection cannot be made or breaks: another attempt may help.
    """
    have = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        place, total = _range(url, response)
        free = shutil.disk_usage(part.parent).free
        if place > have:
            raise HTTPException(f"the answer begins at byte {place}, not {have}")
        if total < have:
            raise DataError(
                f"{url} answers with {total / 1e6:.1f} MB, and {part} has {have / 1e6:.1f} MB already: this "
                f"may be the log-in page of a network. The file is kept: try again when you are on line, or "
                f"delete it."
            )
        if total - have > free:
            raise DataError(
                f"{part.parent} has {free / 1e9:.1f} GB free, the rest of {url} needs "
                f"{(total - have) / 1e9:.1f} GB: make room, or choose another --data-dir."
            )
        with progress.task(f"Fetching {part.stem}", -(-total // _MB), "MB") as task:
            task.advance(place // _MB)
            while chunk := response.read1(_CHUNK_BYTES):  # read would lose what came before a break
                try:
                    # A server that ignores ranges begins at 0: what is there already is passed over.
                    file.write(chunk[max(0, have - place) :])
                    file.flush()
                except OSError as error:
                    raise _not_written(part, error) from None
                task.advance((place + len(chunk)) // _MB - place // _MB)
                place += len(chunk)
    if place < total:
        raise HTTPException(f"after {place / 1e6:.1f} of {total / 1e6:.1f} MB")


def _range(url: str, response: HTTPResponse) -> tuple[int, int]:
    """Return the byte that the answer begins at, and the size of the whole."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found:
            return int(found[1]), int(found[2])
    elif (length := response.headers.get("Content-Length", "")).isdecimal():
        return 0, int(length)
    raise DataError(f"{url} is served without its size: download it by other means, and put it there.")


def _sha1(path: Path, progress: Progress) -> str:
    """Return the SHA-1 of a file in hexadecimal digits."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    done = 0
    total = -(-path.stat().st_size // _MB)
    with path.open("rb") as file, progress.task(f"Checking {path.name}", total, "MB") as task:
        while chunk := file.read(_CHUNK_BYTES):
            sha1.update(chunk)
            task.advance((done + len(chunk)) // _MB - done // _MB)
            done += len(chunk)
    return sha1.hexdigest()
