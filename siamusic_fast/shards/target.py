"""The folder that a shard set is written to: one packer at a time, nothing foreign overwritten."""

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import MANIFEST
from siamusic_fast.shards.plan import SPLITS
from siamusic_fast.shards.tables import REJECTED, TRACKS

UNFINISHED = ".packing"
"""Marks a folder whose packing has not ended; locked by the packer as long as it lives."""

_TABLES = "|".join(map(re.escape, (MANIFEST, TRACKS, REJECTED)))
_SHARD_FILE = rf"(?:{'|'.join(SPLITS)})(?:-unlabelled)?-\d{{6}}\.(?:tar|idx)"
_OWN = re.compile(rf"(?P<temporary>\.)?(?:{_SHARD_FILE}|{_TABLES})(?(temporary)\.tmp)")
"""Names of files that a shard set has, and of those that are being written (see `files.temporary_name`)."""


@contextmanager
def claim(folder: Path, force: bool) -> Iterator[None]:
    """Have `folder` to oneself for a new shard set; its mark stays if the context raises.

    What an unfinished packing left behind is removed, and with `force` an older shard set too: its shards,
    indices and tables, nothing else. Raises `DataError` if the folder is being packed, holds a shard set and
    `force` is not given, or holds other files with such names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / UNFINISHED
    left_unfinished = mark.exists()
    with mark.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder} is being packed by another run: wait for it, or choose another --out."
            ) from None
        try:
            _check(folder, force, left_unfinished)
        except DataError:
            mark.unlink()
            raise
        for file in sorted(_own_files(folder), key=lambda file: file.name != MANIFEST):
            file.unlink()
        yield
        mark.unlink()


def _check(folder: Path, force: bool, left_unfinished: bool) -> None:
    manifest = folder / MANIFEST
    if manifest.exists():
        if not _is_ours(manifest):
            raise DataError(f"{manifest} is not the manifest of a shard set: choose another --out.")
        if not force:
            raise DataError(
                f"{folder} already holds a shard set: --force packs it anew, --out packs elsewhere."
            )
    elif not left_unfinished and (files := _own_files(folder)):
        raise DataError(
            f"{folder} holds files of no shard set that would be overwritten, such as {min(files).name}: "
            f"choose another --out."
        )


def _is_ours(manifest: Path) -> bool:
    """Return whether `manifest` begins like one of ours, damaged or not."""
    return b'"format_version"' in manifest.read_bytes()[:200]


def _own_files(folder: Path) -> list[Path]:
    """Files that a shard set has, complete or not."""
    return [file for file in folder.iterdir() if _OWN.fullmatch(file.name)]
