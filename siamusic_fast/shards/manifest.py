"""The manifest of a shard set: which shards it has, what they hold, and the checksums of all files."""

import csv
import dataclasses
import functools
import hashlib
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from siamusic_fast.audio.corpus import MAX_CLASSES, SPLITS
from siamusic_fast.config import CODECS, MAX_SEED
from siamusic_fast.config.fields import Between, OneOf, Positive, check_value
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import MANIFEST_LIMIT, TABLE_LIMIT, file_sha256, open_regular
from siamusic_fast.shards.sealed import read_sealed, write_sealed
from siamusic_fast.storage.cache import Fetching, ShardCache
from siamusic_fast.storage.remote import RemoteFolder, is_url, joined

MANIFEST_FORMAT = 5
MANIFEST = "manifest.json"
TRACKS = "tracks.csv"
REJECTED = "rejected.csv"
FRONTENDS = "frontends.json"
"""File in which pipelines keep the frontends that they estimated from the shards."""

_NOT_IN_MANIFEST = ("folder", "url", "cache")
"""Fields of `ShardSet` that say where it is."""
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_BYTES = 2**50
"""More bytes than a file can have, and more samples than one can hold."""
_BYTES_PER_TRACK = 6 * 512
"""Bytes that a track takes at least in a tar: a header and a block of content for each of its three files."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and its index."""

    file: str
    """Bare name of the tar in the folder of the shard set, such as training-000000.tar."""
    index: str
    """Bare name of the wds2idx v1.2 index of `file`."""
    tracks: Annotated[int, Between(1, _MAX_BYTES)]
    """Number of tracks, or of segments of tracks."""
    bytes: Annotated[int, Between(1, _MAX_BYTES)]
    """Size of the tar in bytes."""
    sha256: str
    """SHA-256 of the tar, in hexadecimal digits."""
    index_sha256: str
    """SHA-256 of the index, in hexadecimal digits."""
    labelled: bool
    """Whether its tracks have classes. Tracks without have shards of their own, which no classifier reads."""
    shortest: Annotated[int, Between(1, _MAX_BYTES)]
    """Samples of audio in its shortest track."""
    longest: Annotated[int, Between(1, _MAX_BYTES)]
    """Samples of audio in its longest track."""


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A folder of shards, as its manifest.json describes it."""

    folder: Path
    """Where its files are; of a set in object storage, where all but its tars have been fetched."""
    source: str
    """Name of the corpus, such as fma_small."""
    codec: Annotated[str, OneOf(CODECS)]
    """How the audio is stored, one of `CODECS`; wav is 16-bit mono with a header of 44 bytes."""
    sample_rate: Annotated[int, Between(1, 1_000_000)]
    """Sample rate of the audio in Hz."""
    classes: tuple[str, ...]
    """Names of the classes. The label of a track is the place of its class in here, or -1."""
    tags: tuple[str, ...]
    """Names of the tags in alphabetical order; a track has any number of them."""
    seed: Annotated[int, Between(0, MAX_SEED)]
    """Seed of the shuffle."""
    min_seconds: Annotated[float, Between(0)]
    """Length in seconds below which tracks were left out."""
    splits: dict[str, tuple[Shard, ...]]
    """Shards of each split that has any, in the order training, validation, test."""
    rejected: dict[str, Annotated[int, Between(0, _MAX_BYTES)]]
    """Number of files that were left out, by reason code."""
    max_seconds: Annotated[float | None, Positive()] = None
    """Length of the segments that longer tracks were cut into, in seconds; None if tracks are whole."""
    quality: Annotated[float | None, Between(0, 10)] = None
    """Quality of Vorbis, 0 to 10; None for other codecs."""
    tables: dict[str, str] = field(default_factory=dict)
    """SHA-256 of tracks.csv and rejected.csv by name, which `write_manifest` fills in."""
    url: str = ""
    """Where the set is in object storage; empty if it is in `folder`."""
    cache: ShardCache | None = None
    """Where its tars are fetched to if it has a `url`."""

    @property
    def place(self) -> str:
        """Its URL or its folder, which `find_shards` takes."""
        return self.url or str(self.folder)

    @property
    def name(self) -> str:
        """Last part of its place."""
        return self.url.rpartition("/")[2] if self.url else self.folder.name

    @property
    def target(self) -> str:
        """What a classifier learns unless told otherwise: the class if there are two of them, else tags."""
        return "tags" if self.tags and len(self.classes) < 2 else "class"

    @property
    def digest(self) -> str:
        """One checksum of all shards, by which what is kept of them is known to be of these."""
        sums = sorted(shard.sha256 for shards in self.splits.values() for shard in shards)
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def names(self, target: str) -> tuple[str, ...]:
        """Return the names of what `target` means, class or tags, in the order of a classifier's outputs."""
        return self.tags if target == "tags" else self.classes

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
                f"{self.place} has no {kind} in split {split!r}: its splits are {', '.join(self.splits)}."
            )
        return found

    def tracks(self, splits: Sequence[str], labelled_only: bool = False) -> int:
        """Return how many tracks the shards that `shards` returns have."""
        return sum(shard.tracks for shard in self.shards(splits, labelled_only))

    def path(self, file: str) -> Path:
        """Return the path of `file`, a file of this set; of a tar only if the set has no `url`."""
        return self.folder / file

    def open_tar(self, shard: Shard, fetching: Fetching | None = None) -> FileIO:
        """Return the tar of `shard`, opened; one of object storage is fetched first, see `ShardCache.open`.

        Raises `OSError` for a tar in `folder` that cannot be opened.
        """
        if self.cache is None:
            return open_regular(self.path(shard.file))
        remote = RemoteFolder(self.url)
        return self.cache.open(remote, shard.file, shard.bytes, shard.sha256, fetching)

    def shown(self, file: str) -> str | Path:
        """Return the path or the URL of `file`, for people."""
        return joined(self.url, file) if self.url else self.folder / file


def find_shards(data: str | Path, data_dir: Path = Path("data"), cache: ShardCache | None = None) -> ShardSet:
    """Return the shard set `data`: a folder, a name found under `data_dir`/shards, or a URL.

    The shards behind a URL, such as s3://bucket/mine, are fetched into `cache` when they are read. None: the
    folder ~/.cache/siamusic-fast, with up to 200 GB. Raises `DataError` if there is no such shard set, or as
    `read_manifest` does.
    """
    if isinstance(data, str) and is_url(data):
        from siamusic_fast.shards.remote_set import open_remote  # only here: it imports this module

        return open_remote(data, cache or ShardCache())
    return read_manifest(find_folder(data, data_dir))


def find_folder(data: str | Path, data_dir: Path = Path("data")) -> Path:
    """Return the folder of the shard set `data`. Raises `DataError` as `find_shards` does."""
    for folder in (Path(data), data_dir / "shards" / data):
        if (folder / MANIFEST).exists():
            return folder
    from siamusic_fast.shards.no_shards import remedy  # only here: it looks for audio

    raise DataError(
        f"no shards {str(data)!r}: neither {Path(data)} nor {data_dir / 'shards' / data} has a {MANIFEST}; "
        f"{remedy(data, data_dir)}."
    )


def read_manifest(folder: Path) -> ShardSet:
    """Return the shard set in `folder`, after checking that every file is there and has its size.

    Raises `DataError` if there is no manifest, if it has another version, if it is not what was written, or
    if files do not match it.
    """
    shard_set = unchanged_manifest(folder)
    for table in (TRACKS, REJECTED):
        _check_file(folder / table)
    for shards in shard_set.splits.values():
        for shard in shards:
            _check_file(folder / shard.file, shard.bytes)
            _check_file(folder / shard.index)
    return shard_set


def unchanged_manifest(folder: Path, url: str = "") -> ShardSet:
    """Return what `parse_manifest` does. Raises `DataError` also if the manifest is not what was written."""
    shard_set, change = parse_manifest(folder, url)
    if change:
        raise _damaged(url or folder, change)
    return shard_set


def parse_manifest(folder: Path, url: str = "", *, every_byte: bool = False) -> tuple[ShardSet, str]:
    """Return the shard set that the manifest in `folder` describes, and what has changed in the manifest.

    No other file is looked at. `url` is where the manifest is from, if that is object storage. For the change
    and `every_byte` see `read_sealed`. Raises `DataError` if there is no manifest, if it has another version,
    or if it describes what cannot be.
    """
    place = url or folder
    try:
        values, change = read_sealed(folder / MANIFEST, MANIFEST_LIMIT, every_byte=every_byte)
        version = values.pop("format_version")
        if version == MANIFEST_FORMAT:
            shard_set = ShardSet(folder=folder, **_parsed_fields(ShardSet, values, ""))
            _check_values(shard_set)
    except FileNotFoundError:
        raise DataError(
            f"{place} is no shard set: it has no {MANIFEST}; `siamusic-fast shard` makes one."
        ) from None
    except (ValueError, TypeError, KeyError, OSError, ConfigError) as error:
        raise _damaged(place, f"{type(error).__name__}: {error}") from None
    if version != MANIFEST_FORMAT:
        raise DataError(
            f"{place}/{MANIFEST} has format version {version}, this version of siamusic-fast reads "
            f"{MANIFEST_FORMAT}: update siamusic-fast, or pack the audio again."
        )
    return shard_set, change


def _damaged(place: object, reason: str) -> DataError:
    return DataError(
        f"{place}/{MANIFEST} is damaged ({reason}): pack the audio again, `siamusic-fast shard --force` does."
    )


def write_manifest(shard_set: ShardSet) -> None:
    """Write the manifest of `shard_set` into its folder, atomically, with the checksums of its tables."""
    values = {"format_version": MANIFEST_FORMAT, **dataclasses.asdict(shard_set)}
    for field_name in _NOT_IN_MANIFEST:
        del values[field_name]
    values["tables"] = {name: file_sha256(shard_set.path(name)) for name in (TRACKS, REJECTED)}
    write_sealed(shard_set.folder / MANIFEST, values)


def check_tracks(shard_set: ShardSet) -> None:
    """Raise `DataError` unless tracks.csv has the SHA-256 that the manifest states."""
    stated = shard_set.tables.get(TRACKS)
    with naming_damage(shard_set.shown(TRACKS)):
        sha256 = file_sha256(shard_set.path(TRACKS), TABLE_LIMIT)
        if sha256 != stated:
            raise ValueError(f"it has SHA-256 {sha256}, the manifest says {stated}")


class DamageError(DataError):
    """A file of a shard set that is not what was packed. `reason` says in a few words what is wrong."""

    def __init__(self, path: Path | str, reason: object) -> None:
        super().__init__(path, str(reason))  # these make it again in another process
        self.path = path
        self.reason = str(reason)

    def __str__(self) -> str:
        folder = str(self.path).rpartition("/")[0] or "."
        return (
            f"{self.path} is missing or damaged ({self.reason}): `siamusic-fast verify {folder}` says what "
            f"is wrong with it; packing again mends it."
        )


@contextmanager
def naming_damage(path: Path | str) -> Iterator[None]:
    """Turn every failure to read or check `path`, a file of a shard set, into a `DamageError`."""
    try:
        yield
    except OSError as error:
        raise DamageError(path, error.strerror or error) from None
    except (ValueError, OverflowError, IndexError, csv.Error) as error:
        raise DamageError(path, error) from None


def _parsed_fields(kind: type, values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` from JSON; all have to be there, except the place."""
    return values | {field: _parsed(of, values[field], f"{name}{field}") for field, of in _kinds(kind)}


@functools.cache
def _kinds(kind: type) -> list[tuple[str, Any]]:
    """Return name and type of each field of the dataclass `kind`, except the place."""
    hints = get_type_hints(kind, include_extras=True)
    return [(field, of) for field, of in hints.items() if field not in _NOT_IN_MANIFEST]


def _parsed(kind: Any, value: Any, name: str) -> Any:
    """Return `value` from JSON as the type `kind`.

    Raises `TypeError` with `name` if it has another type, `ConfigError` if it breaks the rule of its field.
    """
    outer, inner = get_origin(kind), get_args(kind)
    if outer is Annotated:
        found = _parsed(inner[0], value, name)
        if found is not None:
            check_value(name, found, inner[1])
        return found
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
    """Raise `ValueError` for values that no packer writes, or that do not go together."""
    shards = [shard for shards in shard_set.splits.values() for shard in shards]
    hashes = {f"the SHA-256 of {name}": shard_set.tables[name] for name in (TRACKS, REJECTED)}
    hashes |= {f"{s.file}: {key}": getattr(s, key) for s in shards for key in ("sha256", "index_sha256")}
    for name, value in hashes.items():
        if not _SHA256.fullmatch(value):
            raise ValueError(f"{name} is {value!r}, not 64 hexadecimal digits")
    _check_splits_and_classes(shard_set)
    for name, count in Counter(name for s in shards for name in (s.file, s.index)).items():
        if count > 1:
            raise ValueError(f"it names {name!r} {count} times")
    for shard in shards:
        _check_shard(shard)


def _check_splits_and_classes(shard_set: ShardSet) -> None:
    if len(shard_set.classes) > MAX_CLASSES:
        raise ValueError(f"it has {len(shard_set.classes)} classes, and there are at most {MAX_CLASSES}")
    for kind, names in (("class", shard_set.classes), ("tag", shard_set.tags)):
        for name, count in Counter(names).items():
            if count > 1 or not name:
                raise ValueError(f"it has the {kind} {name!r} {count} times")
    for split, shards in shard_set.splits.items():
        if split not in SPLITS or not shards:
            raise ValueError(f"it has the split {split!r} of {len(shards)} shards")


def _check_shard(shard: Shard) -> None:
    for name in (shard.file, shard.index):
        if name in ("", ".", "..", MANIFEST, TRACKS, REJECTED) or {"/", "\0"} & set(name):
            raise ValueError(f"it names {name!r}, which is not a plain file name of a shard")
    if shard.tracks > shard.bytes / _BYTES_PER_TRACK:
        raise ValueError(f"{shard.file} cannot hold {shard.tracks} tracks in {shard.bytes} bytes")
    if shard.shortest > shard.longest:
        raise ValueError(
            f"{shard.file}: its shortest track has {shard.shortest} samples, its longest {shard.longest}"
        )


def _check_file(path: Path, size: int | None = None) -> None:
    """Raise `DamageError` unless `path` is a regular file itself, and has `size`."""
    with naming_damage(path):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a link, which may lead anywhere" if stat.S_ISLNK(found.st_mode) else "no regular file"
            raise ValueError(f"it is {kind}")
        if size not in (None, found.st_size):
            raise ValueError(f"it has {found.st_size} bytes, the manifest says {size}")
