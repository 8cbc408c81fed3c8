"""The two tables of a shard set: tracks.csv, what is in it, and rejected.csv, what was left out and why."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.shards.files import atomic_write

TRACKS = "tracks.csv"
REJECTED = "rejected.csv"

_TRACK_COLUMNS = ("index", "key", "split", "class", "seconds", "shard", "path", "sha256")
_REJECT_COLUMNS = ("path", "reason", "detail")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrack:
    """One row of tracks.csv."""

    key: str
    split: str
    genre: str
    """Empty if unknown."""
    seconds: float
    shard: str
    """File name of its tar."""
    path: str
    """Of the source file, relative to the corpus."""
    sha256: str
    """Of the 16-bit samples, little-endian, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One row of rejected.csv; `reason` is one of `decode.REASONS`."""

    path: str
    reason: str
    detail: str


def write_tracks(folder: Path, tracks: Iterable[PackedTrack]) -> None:
    """Write tracks.csv, numbered from 0 in the order of `tracks`."""
    rows = (
        (index, t.key, t.split, t.genre, f"{t.seconds:.3f}", t.shard, t.path, t.sha256)
        for index, t in enumerate(tracks)
    )
    _write(folder / TRACKS, _TRACK_COLUMNS, rows)


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> None:
    """Write rejected.csv in the order of the paths."""
    rows = ((r.path, r.reason, r.detail) for r in sorted(rejects, key=lambda reject: reject.path))
    _write(folder / REJECTED, _REJECT_COLUMNS, rows)


def read_tracks(folder: Path) -> Iterator[PackedTrack]:
    """Yield the rows of tracks.csv in `folder`. Raises `DataError` if there is none, or a damaged one."""
    try:
        with (folder / TRACKS).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                yield PackedTrack(
                    key=row["key"],
                    split=row["split"],
                    genre=row["class"],
                    seconds=float(row["seconds"]),
                    shard=row["shard"],
                    path=row["path"],
                    sha256=row["sha256"],
                )
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{folder / TRACKS} cannot be read ({type(error).__name__}: {error}): "
            f"pack the audio again with `siamusic-fast shard --force`."
        ) from None


def _write(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        text.flush()
        text.detach()
