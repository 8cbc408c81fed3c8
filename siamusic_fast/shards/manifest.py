"""What a shard set holds: the manifest beside its shards."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write, open_regular
from siamusic_fast.shards.tables import REJECTED, TRACKS

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
FRONTENDS = "frontends.json"
"""Where pipelines keep the frontends that they estimated from the shards."""

_SEAL = "sha256"
"""Field of the manifest: the checksum of all others, see `checksums`."""

_SHA256 = re.compile("[0-9a-f]{64}")
_NUMBER = (int, float)
_SHARD_TYPES = {
    "tracks": (int,),
    "bytes": (int,),
    "sha256": (str,),
    "index_sha256": (str,),
    "labelled": (bool,),
    "shortest": (int,),
    "longest": (int,),
}
_TYPES = {
    "source": (str,),
    "codec": (str,),
    "sample_rate": (int,),
    "classes": (list,),
    "seed": (int,),
    "min_seconds": _NUMBER,
    "splits": (dict,),
    "rejected": (dict,),
    "max_seconds": (*_NUMBER, type(None)),
    "quality": (*_NUMBER, type(None)),
    "tables": (dict,),
}
"""Of the fields in JSON."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and its index."""

    file: str
    """Bare name inside the folder of the shard set, such as training-000000.tar."""
    index: str
    """Bare name of the wds2idx v1.2 index of `file`."""
    tracks: int
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, in hexadecimal digits."""
    index_sha256: str
    """SHA-256 of the index, in hexadecimal digits."""
    labelled: bool
    """Whether its tracks have classes; tracks without have shards of their own, which no classifier reads."""
    shortest: int
    """Samples of audio in its shortest track."""
    longest: int
    """Samples of audio in its longest track."""


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A folder of shards, as its manifest.json describes it."""

    folder: Path
    source: str
    """Name of the corpus, such as fma_small."""
    codec: str
    """How the audio is stored, one of `codec.CODECS`; wav: 16-bit mono with a header of 44 bytes."""
    sample_rate: int
    """In Hz."""
    classes: tuple[str, ...]
    """The label of a track is the place of its class in here, or -1."""
    seed: int
    """Of the shuffle."""
    min_seconds: float
    """Shorter tracks were left out."""
    splits: dict[str, tuple[Shard, ...]]
    """Those that have shards, in the order training, validation, test."""
    rejected: dict[str, int]
    """Files left out by reason code."""
    max_seconds: float | None = None
    """Longer tracks were cut into segments, which are what `Shard.tracks` counts; None: they are whole."""
    quality: float | None = None
    """Of Vorbis, 0 to 10; None for a codec without loss."""
    tables: dict[str, str] = field(default_factory=dict)
    """SHA-256 of tracks.csv and rejected.csv by name, as `write_manifest` found them."""

    def shards(self, splits: Sequence[str], labelled_only: bool = False) -> tuple[Shard, ...]:
        """Return the shards of `splits`, in that order; `labelled_only`: those whose tracks have classes.

        Raises `DataError` for a split that has none.
        """
        return tuple(shard for split in splits for shard in self._shards(split, labelled_only))

    def _shards(self, split: str, labelled_only: bool) -> tuple[Shard, ...]:
        found = tuple(shard for shard in self.splits.get(split, ()) if shard.labelled or not labelled_only)
        if not found:
            kind = "labelled tracks" if labelled_only else "tracks"
            raise DataError(
                f"{self.folder} has no {kind} in split {split!r}: its splits are {', '.join(self.splits)}."
            )
        return found

    def tracks(self, splits: Sequence[str], labelled_only: bool = False) -> int:
        """Return how many tracks `shards` would give."""
        return sum(shard.tracks for shard in self.shards(splits, labelled_only))

    def path(self, file: str) -> Path:
        """Return where `file`, a tar or an index of this set, is."""
        return self.folder / file


def find_shards(data: str | Path, data_dir: Path = Path("data")) -> ShardSet:
    """Return the shard set that `data` means: a folder, or a name found under `data_dir`/shards.

    Raises `DataError` if there is none, or as `read_manifest` does.
    """
    return read_manifest(find_folder(data, data_dir))


def find_folder(data: str | Path, data_dir: Path = Path("data")) -> Path:
    """Return the folder of the shard set that `data` means, or raise `DataError` as `find_shards` does."""
    for folder in (Path(data), data_dir / "shards" / data):
        if (folder / MANIFEST).is_file():
            return folder
    raise DataError(
        f"no shards {str(data)!r}: neither {Path(data)} nor {data_dir / 'shards' / data} has a {MANIFEST}; "
        f"`siamusic-fast shard {Path(data).name or data}` makes them."
    )


def read_manifest(folder: Path, check_files: bool = True) -> ShardSet:
    """Return the shard set in `folder`; unless told otherwise, every file is there and has its size.

    Raises `DataError` if there is no manifest, one of another version, or if files do not match it. Whether
    its own checksum is right is for `verify` to say.
    """
    try:
        values = _read_values(folder)
        version = values.pop("format_version")
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no shard set: it has no {MANIFEST}; `siamusic-fast shard` makes one."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise _damaged(folder, error) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder / MANIFEST} has format version {version}, this version of siamusic-fast reads "
            f"{FORMAT_VERSION}: update siamusic-fast, or pack the audio again."
        )
    try:
        shard_set = _from_json(folder, values)
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(folder, error) from None
    for shards in shard_set.splits.values():
        for shard in shards:
            _check_names(folder, shard)
            if check_files:
                _check_files(folder, shard)
    return shard_set


def write_manifest(shard_set: ShardSet) -> None:
    """Write the manifest of `shard_set` into its folder, atomically, with checksums of the tables there."""
    values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(shard_set)}
    del values["folder"]
    values["tables"] = {name: file_sha256(shard_set.path(name)) for name in (TRACKS, REJECTED)}
    values[_SEAL] = _seal(values)
    text = json.dumps(values, indent=2)
    with atomic_write(shard_set.folder / MANIFEST) as file:
        file.write(f"{text}\n".encode())


def checksums(folder: Path) -> tuple[str | None, str]:
    """Return the SHA-256 that the manifest in `folder` says it has, and the one that it has.

    It is that of all its other fields, in their order, as JSON without line breaks or spaces. Raises
    `OSError` or `ValueError` if it cannot be read.
    """
    values = _read_values(folder)
    said = values.pop(_SEAL, None)
    return said, _seal(values)


def check_tracks(shard_set: ShardSet) -> None:
    """Raise `DataError` unless tracks.csv has the SHA-256 that the manifest says."""
    path = shard_set.path(TRACKS)
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise damaged(path, error.strerror or error) from None
    if sha256 != shard_set.tables.get(TRACKS):
        raise damaged(path, f"it has SHA-256 {sha256}, the manifest says {shard_set.tables.get(TRACKS)}")


def damaged(path: Path, reason: object) -> DataError:
    """Return the error that says that a file of a shard set is not what was packed, and what to do."""
    return DataError(
        f"{path} is missing or damaged ({reason}): `siamusic-fast verify {path.parent}` says what is wrong "
        f"with it; packing again mends it."
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def _read_values(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def _from_json(folder: Path, values: dict[str, Any]) -> ShardSet:
    values.pop(_SEAL, None)
    _check_types(values, _TYPES)
    for name, members, kind in (
        ("classes", values["classes"], str),
        ("rejected", values["rejected"].values(), int),
        ("tables", values["tables"].values(), str),
        ("splits", values["splits"].values(), list),
    ):
        if any(type(member) is not kind for member in members):
            raise TypeError(f"{name} holds something that is no {kind.__name__}")
    for name in (TRACKS, REJECTED):
        _check_sha256(f"the SHA-256 of {name}", values["tables"][name])
    splits = {
        split: tuple(_shard_from_json(shard) for shard in shards)
        for split, shards in values.pop("splits").items()
    }
    names = Counter(name for shards in splits.values() for s in shards for name in (s.file, s.index))
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"it names {name!r} {count} times")
    classes = tuple(values.pop("classes"))
    return ShardSet(folder=folder, splits=splits, classes=classes, **values)


def _shard_from_json(values: dict[str, Any]) -> Shard:
    _check_types(values, _SHARD_TYPES)
    for name in ("sha256", "index_sha256"):
        _check_sha256(name, values[name])
    return Shard(**values)


def _check_types(values: dict[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    for name, kinds in types.items():
        if type(values[name]) not in kinds:
            raise TypeError(f"{name} is {values[name]!r}")


def _check_sha256(name: str, value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{name} is {value!r}, not 64 hexadecimal digits")


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}): pack the audio again, "
        f"`siamusic-fast shard --force` does."
    )


def _check_names(folder: Path, shard: Shard) -> None:
    for name in (shard.file, shard.index):
        if name in ("", ".", "..") or not isinstance(name, str) or {"/", "\0"} & set(name):
            raise DataError(
                f"{folder / MANIFEST} names {name!r}, which is not a plain file name in its folder: "
                f"do not use this shard set."
            )


def _check_files(folder: Path, shard: Shard) -> None:
    size = _size(folder / shard.file)
    if size != shard.bytes or _size(folder / shard.index) is None:
        state = "is missing or has no index" if size is None or size == shard.bytes else f"has {size} bytes"
        raise DataError(
            f"{folder / shard.file} {state}, the manifest says {shard.bytes} bytes with index {shard.index}: "
            f"copy the shard set again, or pack it again with `siamusic-fast shard --force`."
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
