"""The manifest of a shard set: which shards it has, what they hold, and the checksums of all files."""

import csv
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write, open_regular

MANIFEST_FORMAT = 4
MANIFEST = "manifest.json"
TRACKS = "tracks.csv"
REJECTED = "rejected.csv"
FRONTENDS = "frontends.json"
"""File in which pipelines keep the frontends that they estimated from the shards."""

_SEAL = "sha256"
"""Field of the manifest with the checksum of all its other fields, see `checksums`."""

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and its index."""

    file: str
    """Bare name of the tar in the folder of the shard set, such as training-000000.tar."""
    index: str
    """Bare name of the wds2idx v1.2 index of `file`."""
    tracks: int
    """Number of tracks, or of segments of tracks."""
    bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """SHA-256 of the tar, in hexadecimal digits."""
    index_sha256: str
    """SHA-256 of the index, in hexadecimal digits."""
    labelled: bool
    """Whether its tracks have classes. Tracks without have shards of their own, which no classifier reads."""
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
    """How the audio is stored, one of `codec.CODECS`; wav is 16-bit mono with a header of 44 bytes."""
    sample_rate: int
    """Sample rate of the audio in Hz."""
    classes: tuple[str, ...]
    """Names of the classes. The label of a track is the place of its class in here, or -1."""
    tags: tuple[str, ...]
    """Names of the tags in alphabetical order; a track has any number of them."""
    seed: int
    """Seed of the shuffle."""
    min_seconds: float
    """Length in seconds below which tracks were left out."""
    splits: dict[str, tuple[Shard, ...]]
    """Shards of each split that has any, in the order training, validation, test."""
    rejected: dict[str, int]
    """Number of files that were left out, by reason code."""
    max_seconds: float | None = None
    """Length of the segments that longer tracks were cut into, in seconds; None if tracks are whole."""
    quality: float | None = None
    """Quality of Vorbis, 0 to 10; None for other codecs."""
    tables: dict[str, str] = field(default_factory=dict)
    """SHA-256 of tracks.csv and rejected.csv by name, which `write_manifest` fills in."""

    def shards(self, splits: Sequence[str], labelled_only: bool = False) -> tuple[Shard, ...]:
        """Return the shards of `splits` in that order; with `labelled_only`, those whose tracks have classes.

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
        """Return how many tracks the shards that `shards` returns have."""
        return sum(shard.tracks for shard in self.shards(splits, labelled_only))

    def path(self, file: str) -> Path:
        """Return the path of `file`, a file of this set."""
        return self.folder / file


def find_shards(data: str | Path, data_dir: Path = Path("data")) -> ShardSet:
    """Return the shard set `data`, which is a folder, or a name found under `data_dir`/shards.

    Raises `DataError` if there is none, or as `read_manifest` does.
    """
    return read_manifest(find_folder(data, data_dir))


def find_folder(data: str | Path, data_dir: Path = Path("data")) -> Path:
    """Return the folder of the shard set `data`. Raises `DataError` as `find_shards` does."""
    for folder in (Path(data), data_dir / "shards" / data):
        if (folder / MANIFEST).is_file():
            return folder
    raise DataError(
        f"no shards {str(data)!r}: neither {Path(data)} nor {data_dir / 'shards' / data} has a {MANIFEST}; "
        f"`siamusic-fast shard {Path(data).name or data}` makes them."
    )


def read_manifest(folder: Path, check_files: bool = True) -> ShardSet:
    """Return the shard set in `folder`, after checking that every file is there and has its size.

    `check_files=False` reads the manifest alone. Raises `DataError` if there is no manifest, if it has
    another version, or if files do not match it. `verify` checks the manifest's own checksum.
    """
    try:
        values = _read_values(folder)
        version = values.pop("format_version")
        if version == MANIFEST_FORMAT:
            values.pop(_SEAL, None)
            shard_set = ShardSet(folder=folder, **_parsed_fields(ShardSet, values, ""))
            _check_values(shard_set)
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no shard set: it has no {MANIFEST}; `siamusic-fast shard` makes one."
        ) from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise DataError(
            f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}): pack the audio again, "
            f"`siamusic-fast shard --force` does."
        ) from None
    if version != MANIFEST_FORMAT:
        raise DataError(
            f"{folder / MANIFEST} has format version {version}, this version of siamusic-fast reads "
            f"{MANIFEST_FORMAT}: update siamusic-fast, or pack the audio again."
        )
    for shards in shard_set.splits.values():
        for shard in shards:
            _check_names(folder, shard)
            if check_files:
                _check_sizes(folder, shard)
    return shard_set


def write_manifest(shard_set: ShardSet) -> None:
    """Write the manifest of `shard_set` into its folder, atomically, with the checksums of its tables."""
    values = {"format_version": MANIFEST_FORMAT, **dataclasses.asdict(shard_set)}
    del values["folder"]
    values["tables"] = {name: file_sha256(shard_set.path(name)) for name in (TRACKS, REJECTED)}
    values[_SEAL] = _seal(values)
    text = json.dumps(values, indent=2)
    with atomic_write(shard_set.folder / MANIFEST) as file:
        file.write(f"{text}\n".encode())


def checksums(folder: Path) -> tuple[str | None, str]:
    """Return the SHA-256 that the manifest in `folder` states of itself, and the one that it has.

    It is the SHA-256 of all its other fields, in their order, as JSON without line breaks or spaces. Raises
    `OSError` or `ValueError` if the manifest cannot be read.
    """
    values = _read_values(folder)
    stated = values.pop(_SEAL, None)
    return stated, _seal(values)


def check_tracks(shard_set: ShardSet) -> None:
    """Raise `DataError` unless tracks.csv has the SHA-256 that the manifest states."""
    path, stated = shard_set.path(TRACKS), shard_set.tables.get(TRACKS)
    with naming_damage(path):
        sha256 = file_sha256(path)
        if sha256 != stated:
            raise ValueError(f"it has SHA-256 {sha256}, the manifest says {stated}")


class DamageError(DataError):
    """A file of a shard set that is not what was packed. `reason` says in a few words what is wrong."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(path, str(reason))  # these make it again in another process
        self.path = path
        self.reason = str(reason)

    def __str__(self) -> str:
        return (
            f"{self.path} is missing or damaged ({self.reason}): `siamusic-fast verify {self.path.parent}` "
            f"says what is wrong with it; packing again mends it."
        )


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn every failure to read or check `path`, a file of a shard set, into a `DamageError`."""
    try:
        yield
    except OSError as error:
        raise DamageError(path, error.strerror or error) from None
    except (ValueError, OverflowError, IndexError, csv.Error) as error:
        raise DamageError(path, error) from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def _read_values(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def _parsed_fields(kind: type, values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` from JSON; all have to be there, except the folder."""
    kinds = {field: kind for field, kind in get_type_hints(kind).items() if field != "folder"}
    return values | {field: _parsed(kind, values[field], f"{name}{field}") for field, kind in kinds.items()}


def _parsed(kind: Any, value: Any, name: str) -> Any:
    """Return `value` from JSON as the type `kind`. Raises `TypeError` with `name` if it has another type."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is tuple and type(value) is list:
        return tuple(_parsed(inner[0], item, f"{name}[{place}]") for place, item in enumerate(value))
    if outer is dict and type(value) is dict:
        return {key: _parsed(inner[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and type(value) is dict:
        return kind(**_parsed_fields(kind, value, f"{name}."))  # type: ignore[operator, arg-type]
    kinds = inner if outer is UnionType else (kind,)
    if type(value) in kinds or (float in kinds and type(value) is int):
        return value
    raise TypeError(f"{name} is {value!r}")


def _check_values(shard_set: ShardSet) -> None:
    """Raise `ValueError` for a checksum that is none, and for a file that the manifest names twice."""
    shards = [shard for shards in shard_set.splits.values() for shard in shards]
    hashes = {f"the SHA-256 of {name}": shard_set.tables[name] for name in (TRACKS, REJECTED)}
    hashes |= {f"{s.file}: {key}": getattr(s, key) for s in shards for key in ("sha256", "index_sha256")}
    for name, value in hashes.items():
        if not _SHA256.fullmatch(value):
            raise ValueError(f"{name} is {value!r}, not 64 hexadecimal digits")
    for name, count in Counter(name for s in shards for name in (s.file, s.index)).items():
        if count > 1:
            raise ValueError(f"it names {name!r} {count} times")


def _check_names(folder: Path, shard: Shard) -> None:
    for name in (shard.file, shard.index):
        if name in ("", ".", "..") or {"/", "\0"} & set(name):
            raise DataError(
                f"{folder / MANIFEST} names {name!r}, which is not a plain file name in its folder: "
                f"do not use this shard set."
            )


def _check_sizes(folder: Path, shard: Shard) -> None:
    for file, stated in ((folder / shard.file, shard.bytes), (folder / shard.index, None)):
        with naming_damage(file):
            size = file.stat().st_size
            if stated not in (None, size):
                raise ValueError(f"it has {size} bytes, the manifest says {stated}")
