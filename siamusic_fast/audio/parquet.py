"""Reads audio and labels from Parquet and Arrow files, as the Hugging Face hub stores them.

A row is a track, and is named by its file and its number: `data/train-00000-of-00004.parquet#17`. Rows are
read in groups, so that memory grows with the largest group and not with the size of a file.
"""

import bisect
import errno
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from siamusic_fast.audio.corpus import SPLITS, Corpus
from siamusic_fast.audio.folder import ENDINGS, as_tracks
from siamusic_fast.audio.labels import ListedFile, nfc
from siamusic_fast.audio.store import FileStatus, Store, find_root, leads_outside, open_store
from siamusic_fast.errors import DataError, not_installed
from siamusic_fast.files import open_regular

if TYPE_CHECKING:
    import pyarrow

AUDIO = "audio"
"""Column of the audio: bytes of a file, or a struct with a field `bytes` of them."""
TABLE_ENDINGS = (".parquet", ".arrow")
_AUDIO_ROWS = 4
"""Rows whose audio becomes one array of Arrow. Larger ones take more memory while they grow."""
_LABEL_ROWS = 1 << 14
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words for splits in names of files and in columns."""


def holds_tables(source: str | Path, data_dir: Path) -> bool:
    """Return whether `source` is a folder with Parquet or Arrow files and without other audio."""
    found = False
    root = find_root(source, [Path(), data_dir], "give the path of the audio")
    for path in open_store(root).paths():
        if path.lower().endswith(ENDINGS):
            return False
        found = found or path.endswith(TABLE_ENDINGS)
    return found


def load_tables(
    source: str | Path,
    data_dir: Path,
    label_column: str | None,
    split_column: str | None,
    group_column: str | None,
    seed: int,
) -> Corpus:
    """Return the rows of Parquet and Arrow files. Arguments and errors are those of `open_corpus`."""
    root = find_root(source, [Path(), data_dir], "give the path of the audio")
    folder = root if root.is_dir() else root.parent
    is_table = root.is_file() and root.name.endswith(TABLE_ENDINGS)
    names = [root.name] if is_table else list(open_store(root).paths())
    names = sorted(name for name in names if name.endswith(TABLE_ENDINGS))
    if not names:
        raise DataError(
            f"{root} holds no file that ends in {' or '.join(TABLE_ENDINGS)}: leave out --label-column, "
            f"--split-column and --group-column."
        )
    if not (is_table or root.is_dir()):
        raise DataError(f"{root} is a zip of Parquet or Arrow files: unpack it and give the folder.")
    splits = dict.fromkeys(names, "") if split_column else _splits_of_files(folder, names)
    listed = [
        ListedFile(f"{name}#{row}", label, split or splits[name], group)
        for name in names
        for row, (label, split, group) in enumerate(
            _rows(folder / name, (label_column, split_column, group_column))
        )
    ]
    if not listed:
        raise DataError(f"{root} has no tracks: its files have no rows.")
    name = open_store(folder).name if root.is_dir() else root.stem
    return Corpus(name=name, folder=folder, tracks=as_tracks(listed, root, seed), in_tables=True)


class TableStore(Store):
    """Rows of the Parquet and Arrow files in a folder. Links to files are followed wherever they lead.

    A row group of Parquet is decompressed as a whole, and that of the row that was read last is kept.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._tables: dict[str, _Table] = {}
        self._statuses: tuple[str, list[FileStatus]] = ("", [])
        self._group: tuple[str, int, list[Any]] = ("", 0, [])

    def status(self, path: str) -> FileStatus | None:
        """Return size and checksum of the audio of a row; all rows of its file are read for that."""
        name, row = self._place(path)
        if self._statuses[0] != name:
            table = self._table(name)
            statuses = [
                _status(group, content) for group in range(table.groups) for content in table.audio(group)
            ]
            self._statuses = (name, statuses)
        statuses = self._statuses[1]
        return statuses[row] if row < len(statuses) else None

    def size(self, path: str) -> int | None:
        """Return the size of the audio of a row in bytes, or None if there is no such row."""
        content = self._content(path)
        return None if content is None else len(content)

    def open(self, path: str) -> BinaryIO:
        content = self._content(path)
        if content is None:
            raise OSError(errno.ENOENT, "no such row")
        return io.BytesIO(content)

    def block(self, path: str) -> str:
        """Return the name of the row group or record batch of a row."""
        name, row = self._place(path)
        return f"{name}/{self._table(name).group_of(row)}"

    def paths(self) -> Iterator[str]:
        for name in sorted(open_store(self.root).paths()):
            if name.endswith(TABLE_ENDINGS):
                yield from (f"{name}#{row}" for row in range(self._table(name).starts[-1]))

    def _content(self, path: str) -> Any:
        """Return the audio of a row as a buffer, or None if there is no such row."""
        name, row = self._place(path)
        table = self._table(name)
        if row >= table.starts[-1]:
            return None
        group = table.group_of(row)
        if self._group[:2] != (name, group):
            self._group = ("", 0, [])  # two of them would take twice the memory
            self._group = (name, group, list(table.audio(group)))
        return self._group[2][row - table.starts[group]]

    def _place(self, path: str) -> tuple[str, int]:
        name, _, row = path.rpartition("#")
        if leads_outside(name) or not row.isdecimal():
            raise DataError(f"the path {path!r} must be that of a row of a file below {self.root}.")
        return name, int(row)

    def _table(self, name: str) -> "_Table":
        if name not in self._tables:
            self._tables[name] = _Table(Path(self.root, name))
        return self._tables[name]


class _Table:
    """One Parquet or Arrow file, in groups of rows: row groups of Parquet, record batches of Arrow.

    Raises `DataError` if it is damaged, or lacks what is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrow = _pyarrow()
        self._parquet: Any = None
        with _naming(path):
            open_regular(path).close()  # Arrow waits for a named pipe, and no signal ends that
            if path.name.endswith(".parquet"):
                self._parquet = arrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
                self.schema: pyarrow.Schema = self._parquet.schema_arrow
                about = self._parquet.metadata
                sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            else:
                with _arrow_reader(path) as reader:
                    self.schema = reader.schema
                    sizes = [len(batch) for batch in _record_batches(reader)]
        self.starts = list(itertools.accumulate(sizes, initial=0))
        """Number of the first row of each group, and of the row behind the last."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.starts) - 1

    def group_of(self, row: int) -> int:
        """Return the number of the group that `row` is in."""
        return bisect.bisect_right(self.starts, row) - 1

    def audio(self, group: int) -> Iterator[Any]:
        """Yield the audio of the rows of a group as buffers; that of a row without audio is empty."""
        is_struct = self.audio_is_struct()
        in_parquet = f"{AUDIO}.bytes" if is_struct and self._parquet else AUDIO
        for batch in self.batches([in_parquet], group, _AUDIO_ROWS):
            column = batch.column(0)
            if is_struct:
                column = column.flatten()[column.type.get_field_index("bytes")]
            yield from (value.as_buffer() or b"" for value in column)

    def audio_is_struct(self) -> bool:
        """Return whether the column of audio is of structs. Raises `DataError` unless it holds bytes."""
        types = _pyarrow().types
        kind = self.column(AUDIO).type
        is_struct = bool(types.is_struct(kind)) and kind.get_field_index("bytes") >= 0
        content = kind.field("bytes").type if is_struct else kind
        if not (types.is_binary(content) or types.is_large_binary(content)):
            raise DataError(
                f"the column {AUDIO!r} of {self.path} is {kind}: it must hold the bytes of audio files, or "
                f"structs with a field bytes."
            )
        return bool(is_struct)

    def batches(self, columns: Sequence[str], group: int, rows: int) -> Iterator["pyarrow.RecordBatch"]:
        """Yield the rows of a group with `columns` alone, those of Parquet by `rows`."""
        with _naming(self.path):
            if self._parquet:
                yield from self._parquet.iter_batches(rows, row_groups=[group], columns=list(columns))
            else:
                with _arrow_reader(self.path) as reader:
                    batch = next(itertools.islice(_record_batches(reader), group, None))
                    yield batch.select(columns)

    def column(self, name: str) -> "pyarrow.Field":
        """Return the type of a column. Raises `DataError` if there is none or more than one."""
        if self.schema.get_field_index(name) < 0:
            raise DataError(
                f"{self.path} has no column {name!r}, or several: its columns are "
                f"{', '.join(map(repr, self.schema.names))}."
            )
        return self.schema.field(name)


def _arrow_reader(path: Path) -> Any:
    """Open an Arrow file, or a stream of Arrow, which is what the `datasets` library writes."""
    arrow = _pyarrow()
    file = arrow.memory_map(str(path))
    try:
        return arrow.ipc.open_file(file)
    except arrow.ArrowInvalid:
        file.seek(0)
        return arrow.ipc.open_stream(file)


def _record_batches(reader: Any) -> Iterator["pyarrow.RecordBatch"]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _status(group: int, content: Any) -> FileStatus:
    checksum = zlib.crc32(content)
    return FileStatus(len(content), checksum | group << 32, checksum)  # shards depend on groups too


def _rows(path: Path, about: Sequence[str | None]) -> Iterator[tuple[str, str, str]]:
    """Yield class, split and group of each row, which are in the columns `about`; "" where not known."""
    table = _Table(path)
    table.audio_is_struct()
    columns = list(dict.fromkeys(filter(None, about)))
    names = [_class_names(table, column) for column in columns]
    batches = (batch for group in range(table.groups) for batch in table.batches(columns, group, _LABEL_ROWS))
    for number, row in enumerate(itertools.chain.from_iterable(map(_values, batches))):
        try:
            values = map(_name, row, names)
            found = dict(zip(columns, values, strict=True))
            label, split, group = (found[column] if column else "" for column in about)
            split = _split(split) if about[1] else ""
        except ValueError as error:
            raise DataError(f"{path}, row {number}: {error}.") from None
        yield label, split, group


def _values(batch: "pyarrow.RecordBatch") -> Iterable[tuple[Any, ...]]:
    """Return the values of each row, which may have no columns."""
    columns = [column.to_pylist() for column in batch.columns]
    return zip(*columns, strict=True) if columns else itertools.repeat((), len(batch))


def _class_names(table: _Table, column: str) -> list[str]:
    """Return the names that the hub's metadata give the numbers in `column`, or none.

    Raises `DataError` unless the column can hold names of classes, splits or groups.
    """
    types = _pyarrow().types
    kind = table.column(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)):
        raise DataError(
            f"the column {column!r} of {table.path} is {kind}: names of classes, splits and groups are "
            f"words or whole numbers."
        )
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])
        return list(map(str, about["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError):
        return []


def _name(value: str | int | None, names: Sequence[str]) -> str:
    """Return the name of a class, split or group; -1 of named numbers and a missing value are no name."""
    if value is None or (names and value == -1):
        return ""
    if isinstance(value, int) and names:
        if not 0 <= value < len(names):
            raise ValueError(f"{value} is none of the {len(names)} names in its metadata")
        value = names[value]
    return sys.intern(nfc(str(value).strip()))


def _split(name: str) -> str:
    if name.lower() not in _SPLIT_WORDS:
        raise ValueError(f"unknown split {name!r}, there are {', '.join(SPLITS)}")
    return _SPLIT_WORDS[name.lower()]


def _splits_of_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the split that each file has by its name or by that of its folder, as the hub names them.

    If all names say training, or none says anything, splits are to be drawn.
    """
    splits = {name: _split_in_name(name) for name in names}
    without = [name for name in names if not splits[name]]
    if without and len(without) < len(names):
        raise DataError(
            f"the name {without[0]!r} in {folder} names no split, and others do: name it like "
            f"train-{without[0].rpartition('/')[2]}, or name a column with --split-column."
        )
    return dict.fromkeys(names, "") if set(splits.values()) == {"training"} else splits


def _split_in_name(name: str) -> str:
    for part in reversed(name.lower().split("/")):
        found = [_SPLIT_WORDS[word] for word in re.split("[^a-z]+", part) if word in _SPLIT_WORDS]
        if found:
            return found[0]
    return ""


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise not_installed("pyarrow, which reads Parquet and Arrow files,", "parquet") from None
    return pyarrow


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn every failure to read `path` into a `DataError`."""
    try:
        yield
    except (_pyarrow().ArrowException, OSError, ValueError) as error:
        kind = "Parquet" if path.name.endswith(".parquet") else "Arrow"
        what = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"{path} is no {kind} file, or is damaged or cut off ({what}): get it again."
        ) from None
