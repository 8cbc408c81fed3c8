"""The two tables of a shard set: tracks.csv lists what is in it, rejected.csv what was left out and why."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from siamusic_fast.audio.corpus import TAG_SEPARATOR
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.files import TABLE_LIMIT, atomic_write, open_regular
from siamusic_fast.shards.manifest import REJECTED, TRACKS, naming_damage

REJECT_COLUMNS = ("path", "reason", "detail")
_MEAN = "mean"
"""Text of the column `channel` for the mean of all channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTrack:
    """One row of tracks.csv: a track, or a segment of one."""

    key: str
    """Key of its WebDataset sample."""
    track_id: str
    """Key of the whole track, which is `key` unless this is a segment."""
    offset: float
    """Second of the track at which this segment starts; 0 for a whole track."""
    split: str
    genre: str
    """Name of its class, empty if unknown."""
    seconds: float
    """Length of its audio in seconds."""
    samples: int
    """Length of its audio in samples, at the sample rate of the shard set."""
    clipped: int
    """Samples that did not fit into 16 bits and were set to the nearest value that does."""
    shard: str
    """File name of its tar."""
    path: str
    """Path of the source file, relative to the corpus."""
    sha256: str
    """SHA-256 of its 16-bit samples, little-endian, in hexadecimal digits."""
    seconds_promised: float | None = None
    """Length of the whole track according to the headers of its file; None if they say nothing."""
    seconds_missing: float = 0.0
    """Seconds by which the whole track is shorter than promised."""
    damaged_packets: int = 0
    """Packets of the source file that did not decode and are left out."""
    channel: int | None = None
    """Channel that was taken because all channels together cancel each other; None for their mean."""
    gain: float = 1.0
    """Factor on every sample of a track that would have been clipped throughout."""
    tags: tuple[str, ...] = ()
    """Tags of the track, in alphabetical order."""
    group: str = ""
    """Group of the track, such as its artist. It is empty if the group is unknown."""


def _checked_sha256(text: str) -> str:
    if len(bytes.fromhex(text)) != 32:
        raise ValueError(f"{text!r} is no SHA-256")
    return text


def tags_in_cell(cell: str) -> tuple[str, ...]:
    """Return the tags in a cell of the column `tags`."""
    return tuple(cell.split(TAG_SEPARATOR)) if cell else ()


_Format = tuple[Callable[[Any], str], Callable[[str], Any]]
"""Turns a value into the text of a cell, and the text back into the value."""
_FORMATS: dict[str, _Format] = {
    **dict.fromkeys(("key", "track_id", "split", "class", "shard", "path", "group"), (str, str)),
    **dict.fromkeys(("samples", "clipped", "damaged_packets"), (str, int)),
    **dict.fromkeys(("offset", "seconds", "seconds_missing"), ("{:.3f}".format, float)),
    "gain": ("{:.6g}".format, float),
    "sha256": (str, _checked_sha256),
    "seconds_promised": (
        lambda value: "" if value is None else f"{value:.3f}",
        lambda text: float(text) if text else None,
    ),
    "tags": (TAG_SEPARATOR.join, tags_in_cell),
    "channel": (
        lambda value: _MEAN if value is None else str(value),
        lambda text: None if text == _MEAN else int(text),
    ),
}
_FIELDS = {"class" if field.name == "genre" else field.name: field.name for field in fields(PackedTrack)}
"""Field of `PackedTrack` that each column of tracks.csv holds."""
TRACK_COLUMNS = ("index", *_FIELDS)
TRACKS_HEADER = f"{','.join(TRACK_COLUMNS)}\n".encode()
"""The first line of tracks.csv."""


def write_tracks(folder: Path, tracks: Iterable[PackedTrack]) -> None:
    """Write tracks.csv, numbered from 0 in the order of `tracks`."""
    rows = (
        (index, *(_FORMATS[column][0](getattr(track, field)) for column, field in _FIELDS.items()))
        for index, track in enumerate(tracks)
    )
    write_table(folder / TRACKS, TRACK_COLUMNS, rows)


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> None:
    """Write rejected.csv in the order of the paths."""
    rows = ((r.path, r.reason, r.detail) for r in sorted(rejects, key=lambda reject: reject.path))
    write_table(folder / REJECTED, REJECT_COLUMNS, rows)


def read_tracks(folder: Path) -> Iterator[PackedTrack]:
    """Yield the rows of tracks.csv in `folder`. Raises `DamageError` if it is missing or damaged."""
    with open_table(folder / TRACKS, TRACK_COLUMNS) as rows:
        for number, (index, *cells) in enumerate(rows):
            if index != str(number):
                raise ValueError(f"row {number} has the index {index}")
            values = zip(_FIELDS.items(), cells, strict=True)
            yield PackedTrack(**{field: _FORMATS[column][1](cell) for (column, field), cell in values})


def read_rejects(folder: Path) -> Iterator[Reject]:
    """Yield the rows of rejected.csv in `folder`. Raises `DamageError` as `read_tracks` does."""
    with open_table(folder / REJECTED, REJECT_COLUMNS) as rows:
        for row in rows:
            yield Reject(*row)


def is_table(path: Path) -> bool:
    """Return whether `path` is a file that begins with the header of our tracks.csv."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(len(TRACKS_HEADER)) == TRACKS_HEADER


@contextmanager
def open_table(path: Path, columns: Sequence[str]) -> Iterator[Iterator[list[str]]]:
    """Open a table and yield its rows after checking that it has exactly `columns`.

    Every failure to read it, also one within the context, becomes a `DamageError`.
    """
    with (
        naming_damage(path),
        io.BufferedReader(open_regular(path, TABLE_LIMIT)) as file,
        io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text,
    ):
        reader = csv.reader(text)
        if next(reader, []) != list(columns):
            raise ValueError(f"its columns are not {', '.join(columns)}")
        yield _whole_rows(reader, len(columns))


def _whole_rows(reader: Iterator[list[str]], cells: int) -> Iterator[list[str]]:
    for number, row in enumerate(reader):
        if len(row) != cells:
            raise ValueError(f"row {number} has {len(row)} cells, not {cells}")
        yield row


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file with a first line of `columns`."""
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
