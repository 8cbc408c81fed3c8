"""Label files: CSV with the path, the class and, if you like, the split and the group of each track."""

import csv
import io
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.audio.store import Store, leads_outside
from siamusic_fast.errors import DataError

BY_FOLDER = "folders"
"""Said in the place of a label file: the sub-folder that a file lies in is its class."""

_COLUMNS = ("path", "label", "split", "group")
_NEEDED = ("path", "label")
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file before it is decided which split it is in."""

    path: str
    label: str
    """Empty if unknown."""
    split: str
    """Empty if it is still to be decided."""
    group: str
    """Tracks of one group share a split; empty if it is in none."""


def read_labels(path: Path, store: Store | None = None) -> list[Entry]:
    """Return the rows of a CSV file with the columns path and label and, if you like, split and group.

    Paths are relative to the folder of audio; an empty label is an unknown one; other columns are ignored. A
    path that is not in `store` is taken as another spelling of one that is, see `_spellings`. Raises
    `DataError` with the number of the row, the header being row 1, if it is short, repeats a path, has a path
    that leads outside or an unknown split, or puts a group into another split than a row before it.
    """
    entries = []
    rows_of: dict[str, int] = {}
    splits_of: dict[str, tuple[str, int]] = {}
    for number, row in _read_rows(path):
        where = f"{path}, row {number}"
        entry = Entry(_find(where, row["path"], store), row["label"], row["split"].lower(), row["group"])
        if entry.split not in ("", *SPLITS):
            raise DataError(f"{where}: unknown split {row['split']!r}, there are {', '.join(SPLITS)}.")
        if entry.path in rows_of:
            raise DataError(f"{where}: {entry.path!r} is in row {rows_of[entry.path]} already: keep one.")
        rows_of[entry.path] = number
        if entry.group and entry.split:
            split, before = splits_of.setdefault(entry.group, (entry.split, number))
            if split != entry.split:
                raise DataError(
                    f"{where}: group {entry.group!r} is in split {entry.split}, and in {split} in row "
                    f"{before}: put all of a group into one split, or leave out the column group."
                )
        entries.append(entry)
    without = [rows_of[entry.path] for entry in entries if not entry.split]
    if 0 < len(without) < len(entries):
        raise DataError(
            f"{path}, row {without[0]}: no split, and other rows have one: give one to all rows, or to none."
        )
    return entries


def _find(where: str, path: str, store: Store | None) -> str:
    """Return the path that is in `store`, if any spelling of `path` is, or else `path` itself."""
    outside = leads_outside(path)
    if store and not outside and not _is_plain(path):
        for spelling in _spellings(path):
            if leads_outside(spelling):
                outside = True
            elif store.size(spelling) is not None:
                return str(PurePosixPath(spelling))
    absolute = path.startswith("/") or PureWindowsPath(path).is_absolute()
    if outside or absolute:
        what = "is absolute" if absolute else "leads outside of the folder of audio"
        raise DataError(
            f"{where}: the path {path!r} {what}: give the path of a file below that folder, relative to it."
        )
    return str(PurePosixPath(path))


def _is_plain(path: str) -> bool:
    """Return whether there is one spelling of `path` only, so that nobody looks it up a million times."""
    return path.isascii() and path == path.strip() and "\\" not in path


def _spellings(path: str) -> Iterator[str]:
    """Yield `path` as it is, without spaces around it, with forward slashes, and accents in both ways.

    Some systems write an accented letter as one character (NFC), others as letter and accent (NFD).
    """
    for spelling in dict.fromkeys((path, path.strip(), path.strip().replace("\\", "/"))):
        yield spelling
        yield unicodedata.normalize("NFC", spelling)
        yield unicodedata.normalize("NFD", spelling)


def nfc(name: str) -> str:
    """Return `name` with every accented letter as one character, so that names which look alike are alike."""
    return unicodedata.normalize("NFC", name)


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield row number and the four columns of each row; those that the file does not have are empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the label file {path} cannot be read: {error.strerror}; name a CSV file, or say "
            f"`--labels {BY_FOLDER}` if sub-folders are classes."
        ) from None
    text = _decode(path, content)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        header = _header(next(rows, []))
        missing = [name for name in _NEEDED if name not in header]
        if missing:
            raise DataError(
                f"{path} has no column {' and no column '.join(missing)}: its first line is "
                f"{', '.join(map(repr, header)) or 'empty'}; the first line of a label file names its "
                f"columns, path and label and, if you like, split and group."
            )
        for name in _COLUMNS:
            if header.count(name) > 1:
                raise DataError(f"{path} has {header.count(name)} columns {name}: keep one.")
        for number, cells in enumerate(rows, start=2):
            if any(cell.strip() for cell in cells):
                yield number, _named(f"{path}, row {number}", rows.line_num, header, cells)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}.") from None


def _decode(path: Path, content: bytes) -> str:
    """Return the text of a CSV file: UTF-8, or UTF-16 with a byte order mark, as Excel writes it."""
    if not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return content.decode("utf-8-sig", "surrogateescape")
    try:
        return content.decode("utf-16")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged UTF-16 ({error.reason}): save it as UTF-8.") from None


def _delimiter(text: str) -> str:
    """Return what the cells are divided by: that by which the first line names the columns needed."""
    for delimiter in _DELIMITERS:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if set(_NEEDED) <= set(_header(header)):
            return delimiter
    return _DELIMITERS[0]


def _header(cells: list[str]) -> list[str]:
    return [name.strip().lower() for name in cells]


def _named(where: str, line: int, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: {len(cells)} cells, and the header has {len(header)}, in line {line} of the file: "
            f"if it is cut off, get it again; put names with commas in quotes."
        )
    row = dict.fromkeys(_COLUMNS, "") | dict(zip(header, cells, strict=True))
    row |= {name: nfc(row[name].strip()) for name in ("label", "split", "group")}
    try:
        row["label"].encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: the label {row['label']!r} is not UTF-8: save the file as UTF-8."
        ) from None
    return row
