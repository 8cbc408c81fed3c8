"""Reads label files: CSV with path, class or tags, and maybe split and group, of each track."""

import csv
import itertools
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TextIO

import numpy as np

from siamusic_fast.audio.corpus import SPLITS, TAG_SEPARATOR
from siamusic_fast.audio.store import Store, leads_outside
from siamusic_fast.errors import DataError
from siamusic_fast.files import TABLE_LIMIT, open_regular

BY_FOLDER = "folders"
"""Word that stands in the place of a label file if the sub-folder of each file is its class."""

_LABEL_COLUMNS = ("path", "label", "split", "group")
_TAGS = "tags"
_ALIASES = {"mp3_path": "path"}
_NO_TAG = "clip_id"


class ListedFile(NamedTuple):
    """One file of audio, and what is said about it before splits are drawn."""

    path: str
    label: str
    """Class of the file. It is empty if the class is unknown."""
    split: str
    """Split of the file. It is empty if it is to be drawn."""
    group: str
    """Group of the file, such as its artist. Splits that are drawn keep it together. It is empty if the group
    is unknown."""
    tags: tuple[str, ...] = ()
    """Tags of the file, in alphabetical order."""


class _Header(NamedTuple):
    """What the first line of a label file says."""

    length: int
    """Number of columns."""
    places: list[int]
    """Place of each of `_LABEL_COLUMNS`; that of an empty cell behind the last one if there is none."""
    tags: int | None
    """Place of the column of tags."""
    tag_columns: list[tuple[int, str]]
    """Place and name of each column that is a tag itself."""


class _Names(dict[str, str]):
    """Cells as names, in NFC and without spaces around them. Equal names are one object, to save memory."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __missing__(self, cell: str) -> str:
        name = nfc(cell.strip())
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the {self.kind} {name!r} is not UTF-8: save the file as UTF-8.") from None
        self[cell] = name = self.setdefault(name, name)
        return name


def read_labels(path: Path, store: Store | None = None, tags: bool = False) -> list[ListedFile]:
    """Return the rows of a CSV file with the columns path and label and, if you like, split and group.

    With `tags`, there is a column tags, with `|` or `;` between the tags of a track, or every other column is
    a tag that a track has if its cell is 1 and not if it is 0 or empty; a column label may be missing then.
    The names that MagnaTagATune gives the columns are known: mp3_path is path, and clip_id is no tag.

    Paths are relative to the folder of audio; an empty label is an unknown one; other columns are ignored. A
    path that is not in `store` is taken as another spelling of one that is, see `_spellings`. Raises
    `DataError` with the number of the row, the header being row 1, if it is short, repeats a path, has a path
    that leads outside or an unknown split.
    """
    listed = _listed_files(path, store, tags)
    if not all(file.split for file in listed) and any(file.split for file in listed):
        row = _first_row(path, tags, (not file.split for file in listed))
        raise DataError(
            f"{path}, row {row}: no split, and other rows have one: give one to all rows, or to none."
        )
    _refuse_repeated(path, listed, tags)
    return listed


def nfc(name: str) -> str:
    """Return `name` in NFC, where every accented letter is one character."""
    return unicodedata.normalize("NFC", name)


def tags_of(text: str) -> list[str]:
    """Return the tags in `text`, which are divided by `|` or `;`."""
    return text.replace(";", TAG_SEPARATOR).split(TAG_SEPARATOR)


def _listed_files(path: Path, store: Store | None, tags: bool) -> list[ListedFile]:
    listed: list[ListedFile] = []
    with _open_table(path, tags) as (header, rows):
        parse = _row_parser(header, store)
        for number, cells in rows:
            try:
                listed.append(parse(cells))
            except ValueError as error:
                raise DataError(f"{path}, row {number}: {error}") from None
    return listed


def _first_row(path: Path, tags: bool, wanted: Iterable[bool]) -> int:
    """Return the number of the first row that is `wanted`; blank rows are not asked for."""
    with _open_table(path, tags) as (_, rows):
        return next((number for (number, _), is_it in zip(rows, wanted, strict=False) if is_it), 0)


def _row_parser(header: _Header, store: Store | None) -> Callable[[list[str]], ListedFile]:
    """Return a function that makes a `ListedFile` of cells. It raises `ValueError` for what is wrong."""
    labels, splits, groups, tags = map(_Names, ("label", "split", "group", "tag"))
    known = set(SPLITS) | {""}
    tags_in: dict[str | tuple[str, ...], tuple[str, ...]] = {}
    path_at, label_at, split_at, group_at = header.places

    def parse(cells: list[str]) -> ListedFile:
        cells.append("")
        split = splits[cells[split_at].lower()]
        if split not in known:
            raise ValueError(f"unknown split {cells[split_at]!r}, there are {', '.join(SPLITS)}.")
        path = cells[path_at]
        if not _is_plain(path):
            path = _find(path, store)
        found: tuple[str, ...] = ()
        if header.tags is not None:
            cell = cells[header.tags]
            if cell not in tags_in:
                tags_in[cell] = tuple(sorted({tags[tag] for tag in tags_of(cell)} - {""}))
            found = tags_in[cell]
        elif header.tag_columns:
            found = _marked(header, cells)
            found = tags_in.setdefault(found, found)
        return ListedFile(path, labels[cells[label_at]], split, groups[cells[group_at]], found)

    return parse


def _marked(header: _Header, cells: list[str]) -> tuple[str, ...]:
    """Return the names of the tag columns whose cells are 1."""
    found = []
    for place, name in header.tag_columns:
        cell = cells[place].strip()
        if cell == "1":
            found.append(name)
        elif cell not in ("0", ""):
            raise ValueError(
                f"{cell!r} in the column {name!r}, which as a tag has 0 or 1: take out columns that are no "
                f"tags, or give all tags in one column {_TAGS}, with | between them."
            )
    return tuple(found)


def _refuse_repeated(path: Path, listed: Sequence[ListedFile], tags: bool) -> None:
    """Raise `DataError` if two rows have one path. Hashes are compared first: a set of paths is large."""
    hashes = np.fromiter((_short_hash(file.path) for file in listed), np.uint32, len(listed))
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    first: dict[str, int] = {}
    for place, file in enumerate(listed if repeated else ()):
        if _short_hash(file.path) in repeated and (before := first.setdefault(file.path, place)) != place:
            rows = [_first_row(path, tags, (n == at for n in itertools.count())) for at in (place, before)]
            raise DataError(f"{path}, row {rows[0]}: {file.path!r} is in row {rows[1]} already: keep one.")


def _short_hash(path: str) -> int:
    return hash(path) & 0xFFFF_FFFF


def _is_plain(path: str) -> bool:
    """Return whether `path` has one spelling only and needs no check. There may be a million of them."""
    return (
        path[:1] not in "./"
        and path.isascii()
        and not ("\\" in path or "//" in path or "/." in path or ":" in path or "\0" in path)
        and path[-1] != "/"
        and path == path.strip()
    )


def _find(path: str, store: Store | None) -> str:
    """Return the spelling of `path` that is in `store`, or else `path` itself."""
    outside = leads_outside(path)
    if store and not outside:
        for spelling in _spellings(path):
            if leads_outside(spelling):
                outside = True
            elif store.size(spelling) is not None:
                return str(PurePosixPath(spelling))
    absolute = path.startswith("/") or PureWindowsPath(path).is_absolute()
    if outside or absolute:
        what = "is absolute" if absolute else "leads outside of the folder of audio"
        raise ValueError(
            f"the path {path!r} {what}: give the path of a file below that folder, relative to it."
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


@contextmanager
def _open_table(path: Path, tags: bool) -> Iterator[tuple[_Header, Iterator[tuple[int, list[str]]]]]:
    """Open a label file, and yield its header and an iterator over number and cells of its rows."""
    with _open_text(path) as file:
        first = file.readline()
        needed = {"path"} if tags else {"path", "label"}
        delimiter = next((d for d in (",", ";", "\t") if needed <= set(_names([first], d))), ",")
        rows = csv.reader(itertools.chain([first], file), delimiter=delimiter, strict=True)
        try:
            header = _header(path, next(rows, []), tags)
            yield header, _read_rows(path, rows, header.length)
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}.") from None


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open a CSV file: UTF-8, or UTF-16 with a byte order mark, as Excel writes it."""
    try:
        with BufferedReader(open_regular(path, TABLE_LIMIT)) as file:
            is_utf_16 = file.peek(2).startswith((BOM_UTF16_LE, BOM_UTF16_BE))
            encoding, errors = ("utf-16", "strict") if is_utf_16 else ("utf-8-sig", "surrogateescape")
            with TextIOWrapper(file, encoding, errors, newline="") as text:
                yield text
    except OSError as error:
        raise DataError(
            f"the label file {path} cannot be read: {error.strerror}; name a CSV file, or say "
            f"`--labels {BY_FOLDER}` if sub-folders are classes."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged UTF-16 ({error.reason}): save it as UTF-8.") from None


def _names(lines: Sequence[str], delimiter: str) -> list[str]:
    """Return the names of the columns, if `delimiter` is between the cells."""
    return _lower(next(csv.reader(lines, delimiter=delimiter), []))


def _lower(cells: Iterable[str]) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    return [_ALIASES.get(name, name) for name in names]


def _header(path: Path, cells: list[str], tags: bool) -> _Header:
    names = _lower(cells)
    missing = [name for name in (("path",) if tags else ("path", "label")) if name not in names]
    if missing:
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}: its first line is "
            f"{', '.join(map(repr, names)) or 'empty'}; the first line of a label file names its "
            f"columns, path and label and, if you like, split and group."
        )
    for name in (*_LABEL_COLUMNS, *((_TAGS,) if tags else ())):
        if names.count(name) > 1:
            raise DataError(f"{path} has {names.count(name)} columns {name}: keep one.")
    places = [names.index(name) if name in names else len(names) for name in _LABEL_COLUMNS]
    if not tags or _TAGS in names:
        return _Header(len(names), places, names.index(_TAGS) if tags else None, [])
    tag_columns = sorted(
        (nfc(cell.strip()), place)
        for place, cell in enumerate(cells)
        if place not in places and names[place] != _NO_TAG
    )
    _check_tag_columns(path, [name for name, _ in tag_columns])
    return _Header(len(names), places, None, [(place, name) for name, place in tag_columns])


def _check_tag_columns(path: Path, names: list[str]) -> None:
    if not names:
        raise DataError(
            f"{path} has no tags: with --tags it needs a column {_TAGS}, with | between the tags of a track, "
            f"or a column of 0 and 1 for each tag."
        )
    for name, after in itertools.pairwise([*names, ""]):
        if not name or name == after or TAG_SEPARATOR in name:
            raise DataError(
                f"{path}: {name!r} cannot be the name of a tag: each column of a tag has a name of its own, "
                f"without {TAG_SEPARATOR} in it."
            )


def _read_rows(path: Path, rows: Any, length: int) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each row that is not blank; the header is row 1."""
    for number, cells in enumerate(rows, start=2):
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != length:
            raise DataError(
                f"{path}, row {number}: {len(cells)} cells, and the header has {length}, in line "
                f"{rows.line_num} of the file: if it is cut off, get it again; put names with commas in "
                f"quotes."
            )
        yield number, cells
