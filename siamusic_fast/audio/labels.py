"""Reads label files: CSV with the path and the class, and maybe the split and the group, of each track."""

import csv
import io
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.audio.store import Store, leads_outside
from siamusic_fast.errors import DataError
from siamusic_fast.files import LIST_LIMIT, read_regular

BY_FOLDER = "folders"
"""Word that stands in the place of a label file if the sub-folder of each file is its class."""

_LABEL_COLUMNS = ("path", "label", "split", "group")


class ListedFile(NamedTuple):
    """One file of audio, and what is said about it before splits are drawn."""

    path: str
    label: str
    """Class of the file. It is empty if the class is unknown."""
    split: str
    """Split of the file. It is empty if it is to be drawn."""
    group: str
    """Tracks of one group share a split. It is empty if the file is in none."""


def read_labels(path: Path, store: Store | None = None) -> list[ListedFile]:
    """Return the rows of a CSV file with the columns path and label and, if you like, split and group.

    Paths are relative to the folder of audio; an empty label is an unknown one; other columns are ignored. A
    path that is not in `store` is taken as another spelling of one that is, see `_spellings`. Raises
    `DataError` with the number of the row, the header being row 1, if it is short, repeats a path, has a path
    that leads outside or an unknown split, or puts a group into a second split.
    """
    listed = []
    rows_of: dict[str, int] = {}
    splits_of: dict[str, tuple[str, int]] = {}
    for number, row in _read_rows(path):
        where = f"{path}, row {number}"
        file = ListedFile(_find(where, row["path"], store), row["label"], row["split"].lower(), row["group"])
        if file.split not in ("", *SPLITS):
            raise DataError(f"{where}: unknown split {row['split']!r}, there are {', '.join(SPLITS)}.")
        if file.path in rows_of:
            raise DataError(f"{where}: {file.path!r} is in row {rows_of[file.path]} already: keep one.")
        rows_of[file.path] = number
        if file.group and file.split:
            split, before = splits_of.setdefault(file.group, (file.split, number))
            if split != file.split:
                raise DataError(
                    f"{where}: group {file.group!r} is in split {file.split}, and in {split} in row "
                    f"{before}: put all of a group into one split, or leave out the column group."
                )
        listed.append(file)
    without = [rows_of[file.path] for file in listed if not file.split]
    if 0 < len(without) < len(listed):
        raise DataError(
            f"{path}, row {without[0]}: no split, and other rows have one: give one to all rows, or to none."
        )
    return listed


def nfc(name: str) -> str:
    """Return `name` in NFC, where every accented letter is one character."""
    return unicodedata.normalize("NFC", name)


def _find(where: str, path: str, store: Store | None) -> str:
    """Return the spelling of `path` that is in `store`, or else `path` itself."""
    outside = leads_outside(path)
    # A path with one spelling only is not looked up, since there may be a million of them.
    is_plain = path.isascii() and path == path.strip() and "\\" not in path
    if store and not outside and not is_plain:
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


def _spellings(path: str) -> Iterator[str]:
    """Yield `path` as it is, without spaces around it, with forward slashes, and accents in both ways.

    Some systems write an accented letter as one character (NFC), others as letter and accent (NFD).
    """
    for spelling in dict.fromkeys((path, path.strip(), path.strip().replace("\\", "/"))):
        yield spelling
        yield nfc(spelling)
        yield unicodedata.normalize("NFD", spelling)


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield row number and the four columns of each row; those that the file does not have are empty."""
    text = _read_text(path)
    headers = {delimiter: _header(text, delimiter) for delimiter in (",", ";", "\t")}
    delimiter = next((d for d, header in headers.items() if {"path", "label"} <= set(header)), ",")
    header = headers[delimiter]
    missing = [name for name in ("path", "label") if name not in header]
    if missing:
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}: its first line is "
            f"{', '.join(map(repr, header)) or 'empty'}; the first line of a label file names its "
            f"columns, path and label and, if you like, split and group."
        )
    for name in _LABEL_COLUMNS:
        if header.count(name) > 1:
            raise DataError(f"{path} has {header.count(name)} columns {name}: keep one.")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, cells in enumerate(rows, start=1):
            if number > 1 and any(cell.strip() for cell in cells):
                yield number, _row(f"{path}, row {number}", rows.line_num, header, cells)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}.") from None


def _header(text: str, delimiter: str) -> list[str]:
    """Return the names of the columns, if `delimiter` is between the cells."""
    cells: list[str] = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    return [name.strip().lower() for name in cells]


def _read_text(path: Path) -> str:
    """Return the text of a CSV file: UTF-8, or UTF-16 with a byte order mark, as Excel writes it."""
    try:
        content = read_regular(path, LIST_LIMIT)
        if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(
            f"the label file {path} cannot be read: {error.strerror}; name a CSV file, or say "
            f"`--labels {BY_FOLDER}` if sub-folders are classes."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged UTF-16 ({error.reason}): save it as UTF-8.") from None


def _row(where: str, line: int, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: {len(cells)} cells, and the header has {len(header)}, in line {line} of the file: "
            f"if it is cut off, get it again; put names with commas in quotes."
        )
    row = dict.fromkeys(_LABEL_COLUMNS, "") | dict(zip(header, cells, strict=True))
    row |= {name: nfc(row[name].strip()) for name in ("label", "split", "group")}
    try:
        row["label"].encode()
    except UnicodeEncodeError:
        message = f"{where}: the label {row['label']!r} is not UTF-8: save the file as UTF-8."
        raise DataError(message) from None
    return row
