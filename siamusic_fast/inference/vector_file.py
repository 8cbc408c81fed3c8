"""Files of embeddings: Parquet or npz, made of parts that are written as they are computed."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.store import path_bytes
from siamusic_fast.embedding.extract import Heard
from siamusic_fast.errors import ConfigError, DataError, not_installed
from siamusic_fast.files import atomic_write, open_regular

ENDINGS = (".parquet", ".npz")
"""Endings of files of embeddings, which say the format."""
ABOUT = "siamusic-fast"
"""Name of the text about a file: a key of the metadata of Parquet, an array of npz."""
FORMAT = 1
"""The only format of `ABOUT` that this version writes and reads."""
_COLUMNS = ("key", "path", "label", "split", "seconds", "start", "vector")
"""One row per track or, with the second `start`, per crop; `vector` is [rows, d]."""

_ROWS_PER_GROUP = 4096
"""Rows of Parquet that are written together, or more if a part has more."""

Columns = dict[str, npt.NDArray[Any]]
"""Arrays by name."""


@dataclass(frozen=True, kw_only=True)
class VectorFile:
    """Embeddings that were read from a file."""

    about: dict[str, Any]
    """The encoder that they are of, and how it heard the tracks."""
    keys: list[str]
    paths: list[str]
    vectors: npt.NDArray[Any]
    """float32 or float16 [rows, d]."""


def check_ending(path: Path) -> None:
    """Raise `ConfigError` unless the ending of `path` is that of a format that can be written here."""
    if path.suffix not in ENDINGS:
        raise ConfigError(
            f"out = {path} must end in {' or '.join(ENDINGS)}: use {path.with_suffix('.parquet')} (on the "
            f"command line --out {path.with_suffix('.parquet')})."
        )
    if path.suffix == ".parquet":
        _parquet()


def write_part(path: Path, heard: Sequence[Heard | Reject], dtype: str) -> None:
    """Write what was heard of some tracks, and which files were left out."""
    with atomic_write(path) as file:
        save_part(file, heard, dtype)


def save_part(file: BinaryIO, heard: Sequence[Heard | Reject], dtype: str) -> None:
    """Write to `file` what `write_part` writes."""
    found = [one for one in heard if isinstance(one, Heard)]
    left_out = [(one.path, one.reason, one.detail) for one in heard if isinstance(one, Reject)]
    rows = [(one, number) for one in found for number in range(len(one.outputs))]
    items = [one.item for one, _ in rows]
    vectors = [one.outputs.numpy() for one in found]
    columns = {
        "key": _texts(item.key for item in items),
        "path": _texts(item.path for item in items),
        "label": _texts(item.label for item in items),
        "split": _texts(item.split for item in items),
        "seconds": np.array([one.seconds for one, _ in rows], np.float64),
        "start": np.array([one.starts[number] for one, number in rows], np.float64),
        "vector": np.concatenate([*vectors, np.empty((0, vectors[0].shape[1] if vectors else 0))]),
        "rejects": np.array(json.dumps(left_out)),
        "tracks": np.array(len(found)),
    }
    columns["vector"] = columns["vector"].astype(dtype)
    np.savez(file, **columns)  # type: ignore[arg-type]


def read_part(path: Path) -> Columns | None:
    """Return what `write_part` wrote, or None if the file is missing or damaged."""
    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in (*_COLUMNS, "rejects", "tracks")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def rejects_of(part: Columns) -> list[Reject]:
    """Return the files that were left out of a part."""
    return [Reject(*row) for row in json.loads(str(part["rejects"]))]


def merge(parts: Sequence[Path], out: Path, about: dict[str, Any], *, per_crop: bool) -> None:
    """Write the rows of `parts`, one part after another, into the file `out`; few parts are in memory."""
    columns = [name for name in _COLUMNS if per_crop or name != "start"]
    write = _write_parquet if out.suffix == ".parquet" else _write_npz
    with atomic_write(out) as file:
        write(file, parts, columns, json.dumps({"format": FORMAT, **about}))


def read_vectors(path: Path) -> VectorFile:
    """Return the embeddings in the file `path`.

    Raises `DataError` if it is no such file, is damaged, or was written by another version.
    """
    try:
        text, columns = (_read_parquet if path.suffix == ".parquet" else _read_npz)(path)
        about = json.loads(text)
        found = about["format"]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: `siamusic-fast embed` writes such a file.") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{path} holds no embeddings of siamusic-fast, or is damaged ({reason}): write it anew with "
            f"`siamusic-fast embed`."
        ) from None
    if found != FORMAT:
        raise DataError(f"{path} has format {found}, this siamusic-fast reads {FORMAT}: write it anew.")
    return VectorFile(
        about=about,
        keys=columns["key"].tolist(),
        paths=columns["path"].tolist(),
        vectors=columns["vector"],
    )


def _texts(texts: Iterable[str]) -> npt.NDArray[np.str_]:
    """Return texts as UTF-8 can hold them: bytes of a name that are not UTF-8 are written as \\xNN."""
    return np.array([path_bytes(text).decode("utf-8", "backslashreplace") for text in texts], np.str_)


def _whole(path: Path) -> Columns:
    part = read_part(path)
    if part is None:
        raise DataError(f"{path} was damaged after it was written: the same command makes it anew.")
    return part


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        otherwise = ", or write .npz instead (on the command line --out embeddings.npz)"
        raise not_installed("pyarrow, which reads and writes Parquet,", "parquet", otherwise) from None
    return pyarrow, pyarrow.parquet


def _write_parquet(file: BinaryIO, parts: Sequence[Path], columns: Sequence[str], about: str) -> None:
    """Write the parts in groups of some thousand rows."""
    arrow, parquet = _parquet()
    writer, waiting = None, []
    for path in parts:
        part = _whole(path)
        vectors = part["vector"]
        if not len(vectors):
            continue
        arrays = [arrow.array(part[name]) for name in columns if name != "vector"]
        arrays.append(arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), vectors.shape[1]))
        table = arrow.table(arrays, names=list(columns)).replace_schema_metadata({ABOUT: about})
        writer = writer or parquet.ParquetWriter(file, table.schema, use_dictionary=False)
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
            writer.write_table(arrow.concat_tables(waiting))
            waiting = []
    assert writer is not None
    if waiting:
        writer.write_table(arrow.concat_tables(waiting))
    writer.close()


def _write_npz(file: BinaryIO, parts: Sequence[Path], columns: Sequence[str], about: str) -> None:
    """Write one array after another, each part by part."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name in columns:
            shapes = [(part[name].shape, part[name].dtype) for part in map(_whole, parts)]
            filled = [(shape, kind) for shape, kind in shapes if shape[0]]
            kind = np.result_type(*(kind for _, kind in filled))
            shape = (sum(shape[0] for shape, _ in filled), *filled[0][0][1:])
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in map(_whole, parts):
                    member.write(part[name].astype(kind).tobytes() if len(part[name]) else b"")
        with archive.open(f"{ABOUT}.npy", "w") as member:
            np.lib.format.write_array(member, np.array(about))


def _read_parquet(path: Path) -> tuple[str, Columns]:
    _, parquet = _parquet()
    with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
        text = file.schema_arrow.metadata[ABOUT.encode()].decode()
        kind = file.schema_arrow.field("vector").type
        vectors = np.empty((file.metadata.num_rows, kind.list_size), kind.value_type.to_pandas_dtype())
        texts: dict[str, list[str]] = {"key": [], "path": []}
        first = 0
        for group in range(file.num_row_groups):  # one at a time: the whole column twice may be too much
            table = file.read_row_group(group, columns=["key", "path", "vector"])
            for name, values in texts.items():
                values += table[name].to_pylist()
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors[first : first + len(table)] = flat.reshape(len(table), -1)
            first += len(table)
    return text, {**{name: np.array(values, object) for name, values in texts.items()}, "vector": vectors}


def _read_npz(path: Path) -> tuple[str, Columns]:
    with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
        return str(file[ABOUT]), {name: file[name] for name in ("key", "path", "vector")}
