"""Any folder of audio: which files are tracks, and what is known of them."""

import csv
import hashlib
import io
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from siamusic_fast.errors import DataError
from siamusic_fast.shards.plan import SPLITS, Corpus, Track
from siamusic_fast.shards.store import Store, find_root, leads_outside, open_store

BY_FOLDER = "folders"
"""Said in the place of a label file: the sub-folder that a file lies in is its class."""

DECODABLE = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""Endings of the files that libsndfile decodes."""

UNDECODABLE = (".aac", ".ape", ".m4a", ".mpc", ".wma", ".wv")
"""Endings of audio that it does not decode: listed too, to be rejected by name rather than overlooked."""

SHARES = {"validation": 0.1, "test": 0.1}
"""Of each class, if nobody says which track is in which split; the others are for training."""

MOST_CLASSES = 10_000
"""The label of a track has four digits in its shard."""

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


def load_folder(
    source: str | Path, data_dir: Path = Path("data"), labels: str | Path | None = None, seed: int = 0
) -> Corpus:
    """Return the tracks of a folder or zip: `source` is its path, or its name in `data_dir`.

    `labels` is a CSV file (see `read_labels`), `BY_FOLDER`, or None: then every audio file is a track without
    a class, for training. Splits that nobody gave are drawn with `seed`, see `draw_splits`. Raises
    `DataError` if there is no audio, or if `labels` is wrong.
    """
    root = find_root(source, [Path(), data_dir], "give the path of the audio")
    store = open_store(root)
    if labels is None:
        entries = [Entry(path, "", "training", "") for path in audio_paths(store)]
    elif str(labels) == BY_FOLDER:
        entries = [Entry(path, _top_folder(path), "", "") for path in audio_paths(store)]
    else:
        entries = read_labels(Path(labels), store)
    if not entries:
        place = labels if labels and str(labels) != BY_FOLDER else root
        raise DataError(f"{place} has no tracks: files that end in {', '.join(DECODABLE)} are expected.")
    classes = {entry.label for entry in entries} - {""}
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{root} has {len(classes)} classes, at most {MOST_CLASSES} fit: merge some of them.")
    splits = draw_splits(entries, seed)
    tracks = (Track(track_key(e.path), e.path, splits[e.path], e.label) for e in entries)
    return Corpus(name=store.name, folder=root, tracks=tuple(tracks))


def audio_paths(store: Store) -> list[str]:
    """Return the paths of all audio files, told by their endings, in alphabetical order."""
    endings = DECODABLE + UNDECODABLE
    return sorted(path for path in store.paths() if path.lower().endswith(endings))


def track_key(path: str) -> str:
    """Return the name of a sample: a function of `path` alone, other for every path.

    Up to 40 letters and digits of the file's name make it readable, 64 bits of a hash of the path unique.
    """
    name = path.rpartition("/")[2].rpartition(".")[0]
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-")
    digest = hashlib.blake2b(_bytes(path), digest_size=8).hexdigest()
    return f"{words}-{digest}" if words else digest


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


def draw_splits(entries: Sequence[Entry], seed: int) -> dict[str, str]:
    """Return the split of each path: the one its entry has, or else one that is drawn.

    Of every class, `SHARES` go to validation and test, at least one track each if the class has three. Tracks
    without a class are for training. A group stays together: largest first, each goes to the split that is
    shortest of its classes, and the tracks in no group make up for what is lacking then. The order of
    `entries` is of no account.
    """
    splits = {entry.path: entry.split or "training" for entry in entries}
    open_entries = [entry for entry in entries if not entry.split]
    groups: dict[str, list[Entry]] = defaultdict(list)
    alone: dict[str, list[str]] = defaultdict(list)
    for entry in open_entries:
        if entry.group:
            groups[entry.group].append(entry)
        elif entry.label:
            alone[entry.label].append(entry.path)
    wanted = _wanted(Counter(entry.label for entry in open_entries if entry.label))
    have: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for group in sorted(groups, key=lambda name: (-len(groups[name]), _drawn(seed, name))):
        classes = Counter(entry.label for entry in groups[group] if entry.label)
        misfits = [_misfit(classes, have[split], wanted[split]) for split in SPLITS]
        split = SPLITS[misfits.index(min(misfits))]
        have[split].update(classes)
        splits.update((entry.path, split) for entry in groups[group])
    for label, paths in alone.items():
        paths.sort(key=lambda path: _drawn(seed, path))
        start = 0
        for split in SHARES:
            lacking = max(0, round(wanted[split][label] - have[split][label]))
            splits.update(dict.fromkeys(paths[start : start + lacking], split))
            start += lacking
    return splits


def _wanted(classes: Counter[str]) -> dict[str, dict[str, float]]:
    """Return, of each split, the tracks of each class that it should get."""
    wanted: dict[str, dict[str, float]] = {split: {} for split in SPLITS}
    for label, count in classes.items():
        for split, share in SHARES.items():
            wanted[split][label] = max(1.0, share * count) if count >= len(SPLITS) else 0.0
        wanted["training"][label] = count - sum(wanted[split][label] for split in SHARES)
    return wanted


def _misfit(classes: Counter[str], have: Counter[str], wanted: dict[str, float]) -> float:
    """Return by how much chi-square, over the classes of one split, grows if `classes` join it.

    Of a class with n tracks there and w wanted, g more change (n - w)² / w by g (2 (n - w) + g) / w.
    """
    return sum(
        count * (2 * (have[label] - wanted[label]) + count) / max(wanted[label], 1e-9)
        for label, count in sorted(classes.items())
    )


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/".encode() + _bytes(name), digest_size=16).digest()


def _top_folder(path: str) -> str:
    """Return the class that the sub-folder names, with escapes for bytes that are no UTF-8."""
    folder = path.partition("/")[0] if "/" in path else ""
    return _bytes(folder).decode("utf-8", "backslashreplace")


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
            if cells:
                yield number, _named(f"{path}, row {number}", header, cells)
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


def _named(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: {len(cells)} cells, and the header has {len(header)}: put names with commas in quotes."
        )
    row = dict.fromkeys(_COLUMNS, "") | dict(zip(header, cells, strict=True))
    row |= {name: row[name].strip() for name in ("label", "split", "group")}
    try:
        row["label"].encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: the label {row['label']!r} is not UTF-8: save the file as UTF-8."
        ) from None
    return row


def _bytes(name: str) -> bytes:
    """Return `name` as it is on disk, whatever the locale."""
    return name.encode("utf-8", "surrogateescape")
