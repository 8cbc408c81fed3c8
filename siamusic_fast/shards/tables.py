"""The two tables of a shard set: tracks.csv, what is in it, and rejected.csv, what was left out and why."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write, open_regular

TRACKS = "tracks.csv"
REJECTED = "rejected.csv"

TRACK_COLUMNS = (
    *("index", "key", "track_id", "offset", "split", "class", "seconds", "samples", "clipped"),
    *("shard", "path", "sha256", "seconds_promised", "seconds_missing", "damaged_packets", "channel", "gain"),
)
_REJECT_COLUMNS = ("path", "reason", "detail")
_MEAN = "mean"
"""Stands in the column `channel` for the mean of all channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrack:
    """One row of tracks.csv."""

    key: str
    track_id: str
    """Of the track: `key`, unless this is a segment of it."""
    offset: float
    """Where in the track this segment starts, in seconds; 0 for a whole track."""
    split: str
    genre: str
    """Empty if unknown."""
    seconds: float
    samples: int
    """Length of its audio, at the sample rate of the shard set."""
    clipped: int
    """Samples that did not fit into 16 bits and were set to the nearest value that does."""
    shard: str
    """File name of its tar."""
    path: str
    """Of the source file, relative to the corpus."""
    sha256: str
    """Of the 16-bit samples, little-endian, in hexadecimal digits."""
    seconds_promised: float | None = None
    """Length of the whole track by the headers of its file; None if they say nothing."""
    seconds_missing: float = 0.0
    """How much shorter than promised the whole track is."""
    damaged_packets: int = 0
    """Packets of the file that did not decode, and are left out."""
    channel: int | None = None
    """The channel of the file that was taken, as all of them cancel each other; None: their mean."""
    gain: float = 1.0
    """Factor on every sample of a track that would have been clipped throughout."""


def write_tracks(folder: Path, tracks: Iterable[PackedTrack]) -> None:
    """Write tracks.csv, numbered from 0 in the order of `tracks`."""
    rows = (
        (
            *(index, t.key, t.track_id, f"{t.offset:.3f}", t.split, t.genre, f"{t.seconds:.3f}"),
            *(t.samples, t.clipped, t.shard, t.path, t.sha256),
            "" if t.seconds_promised is None else f"{t.seconds_promised:.3f}",
            *(f"{t.seconds_missing:.3f}", t.damaged_packets, _channel_name(t.channel), f"{t.gain:.6g}"),
        )
        for index, t in enumerate(tracks)
    )
    _write(folder / TRACKS, TRACK_COLUMNS, rows)


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> None:
    """Write rejected.csv in the order of the paths."""
    rows = ((r.path, r.reason, r.detail) for r in sorted(rejects, key=lambda reject: reject.path))
    _write(folder / REJECTED, _REJECT_COLUMNS, rows)


def read_tracks(folder: Path) -> Iterator[PackedTrack]:
    """Yield the rows of tracks.csv in `folder`. Raises `DataError` if there is none, or a damaged one."""
    with _rows(folder / TRACKS) as rows:
        for row in rows:
            yield PackedTrack(
                key=row["key"],
                track_id=row["track_id"],
                offset=float(row["offset"]),
                split=row["split"],
                genre=row["class"],
                seconds=float(row["seconds"]),
                samples=int(row["samples"]),
                clipped=int(row["clipped"]),
                shard=row["shard"],
                path=row["path"],
                sha256=_checked(row["sha256"]),
                seconds_promised=float(row["seconds_promised"]) if row["seconds_promised"] else None,
                seconds_missing=float(row["seconds_missing"]),
                damaged_packets=int(row["damaged_packets"]),
                channel=None if row["channel"] == _MEAN else int(row["channel"]),
                gain=float(row["gain"]),
            )


def read_rejects(folder: Path) -> Iterator[Reject]:
    """Yield the rows of rejected.csv in `folder`. Raises `DataError` as `read_tracks` does."""
    with _rows(folder / REJECTED) as rows:
        for row in rows:
            yield Reject(row["path"], row["reason"], row["detail"])


def is_table(path: Path) -> bool:
    """Return whether `path` is a file that begins with the header of our tracks.csv."""
    header = f"{','.join(TRACK_COLUMNS)}\n".encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a table as lines of text for `csv`; what is no regular file is an `OSError`."""
    return io.TextIOWrapper(
        io.BufferedReader(open_regular(path)), encoding="utf-8", errors="surrogateescape", newline=""
    )


def _channel_name(channel: int | None) -> str:
    return _MEAN if channel is None else str(channel)


def _checked(sha256: str) -> str:
    if len(bytes.fromhex(sha256)) != 32:
        raise ValueError(f"{sha256!r} is no SHA-256")
    return sha256


def _whole_rows(rows: "csv.DictReader[str]") -> Iterator[dict[str, str]]:
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"line {rows.line_num} has too few cells, or too many")
        yield row


@contextmanager
def _rows(path: Path) -> Iterator[Iterable[dict[str, str]]]:
    """Open a table; what goes wrong while it is read, in the context too, becomes a `DataError`."""
    try:
        with open_text(path) as file:
            yield _whole_rows(csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            f"pack the audio again with `siamusic-fast shard --force`."
        ) from None


def _write(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        careful = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in map(tuple, rows):
            # Before Python 3.13, a carriage return is not quoted, and ends the row for whoever reads it.
            (careful if any("\r" in str(cell) for cell in row) else writer).writerow(row)
        text.flush()
        text.detach()
