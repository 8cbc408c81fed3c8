"""What a network can be told to hear: shard sets, audio files, folders and zips of audio, or lists."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from siamusic_fast.audio.corpus import path_key
from siamusic_fast.audio.decode import AudioError
from siamusic_fast.audio.folder import ENDINGS, audio_paths
from siamusic_fast.audio.store import local_name, open_store
from siamusic_fast.embedding.pieces import Piece, file_piece, shard_piece
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import LIST_LIMIT, read_regular
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.tracks import Tracks, open_tracks
from siamusic_fast.shards.manifest import MANIFEST, TRACKS, DamageError, ShardSet, find_shards, read_manifest
from siamusic_fast.shards.tables import PackedTrack, read_tracks
from siamusic_fast.storage.remote import is_url

FILES_PER_PART = 256
"""Files that are read, written and resumed together."""
_EXAMPLES = 8
"""Files of a source that other machines look for."""

Given = str | Path | ShardSet
"""What a user calls a source: a path, a name, a list of these (`@files.txt`), or an open shard set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One track to hear, and what is known about it before."""

    key: str
    """Name of the track, unique in its source."""
    path: str
    """Its file; of a track in a shard set, the path that the corpus had it at. Empty for a waveform."""
    label: str = ""
    """Its class, empty if unknown."""
    split: str = ""
    """Its split, empty if it has none."""
    open: Callable[[Frontend], Sequence[Piece]]
    """Reads or decodes it: one piece, or several of a track that was packed in segments. Of a file or a
    shard, it can be pickled."""


class Source(ABC):
    """Tracks in parts of some hundred, which are made as they are asked for."""

    parts: int
    """Number of parts."""
    samples: int
    """Number of files, or of tracks and segments of tracks."""

    def share(self, parts: int) -> int:
        """Return about how many files, or tracks and segments, so many `parts` have."""
        return -(-self.samples * parts // max(1, self.parts))

    @abstractmethod
    def items(self, wanted: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
        """Yield the parts numbered `wanted`, each with its tracks, in ascending order."""

    @abstractmethod
    def digest(self) -> str:
        """Return text that changes if the tracks change."""

    @abstractmethod
    def examples(self) -> list[tuple[Path, str]]:
        """Return a few of its files: the folder or zip that each is in, and its path there."""


class ShardSource(Source):
    """The tracks of some splits of a shard set, in its order; a part is a shard."""

    def __init__(self, shard_set: ShardSet, splits: Sequence[str]) -> None:
        self.shard_set = shard_set
        self._shards = shard_set.shards(splits)
        self.parts = len(self._shards)
        self.samples = sum(shard.tracks for shard in self._shards)
        self._tracks = open_tracks(shard_set, splits)

    def items(self, wanted: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
        places = {shard.file: place for place, shard in enumerate(self._shards)}
        for file, rows in itertools.groupby(read_tracks(self.shard_set.folder), key=attrgetter("shard")):
            part = places.get(file)
            if part is not None and part in wanted:
                yield part, self._items_of(part, list(rows))

    def _items_of(self, part: int, rows: list[PackedTrack]) -> list[Item]:
        shard = self._shards[part]
        if len(rows) != shard.tracks:
            path = self.shard_set.path(TRACKS)
            raise DamageError(path, f"it has {len(rows)} rows on {shard.file}, not {shard.tracks}")
        opened = _OneShard(self._tracks.of_shard(part))
        return [
            _packed_item(opened, list(segments))
            for _, segments in itertools.groupby(enumerate(rows), key=lambda row: row[1].track_id)
        ]

    def digest(self) -> str:
        return "\n".join(shard.sha256 for shard in self._shards)

    def examples(self) -> list[tuple[Path, str]]:
        return [(self.shard_set.folder, self._shards[0].file)]


class _OneShard:
    """The tracks of one shard, which are opened where they are read; that may be another process."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._reader = lru_cache(partial(Reader, tracks))

    def __reduce__(self) -> tuple[Any, ...]:
        return _OneShard, (self._tracks,)

    def open(self, places: Sequence[tuple[int, float]], frontend: Frontend) -> list[Piece]:
        """Return a piece for each of `places`, a number in the shard and the second at which it starts."""
        reader, rate = self._reader(frontend), self._tracks.shard_set.sample_rate
        return [
            shard_piece(reader, number, int(self._tracks.samples[number]), rate, offset)
            for number, offset in places
        ]


def _packed_item(opened: _OneShard, segments: list[tuple[int, PackedTrack]]) -> Item:
    row = segments[0][1]
    places = [(number, segment.offset) for number, segment in segments]
    return Item(
        key=row.track_id,
        path=row.path,
        label=row.genre,
        split=row.split,
        open=partial(opened.open, places),
    )


class FileSource(Source):
    """Audio files, each named by the folder or zip that it is in and its path there."""

    def __init__(self, files: Sequence[tuple[Path, str]]) -> None:
        self._files = files
        self.parts = -(-len(files) // FILES_PER_PART)
        self.samples = len(files)

    def items(self, wanted: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
        for part in sorted(wanted):
            files = self._files[part * FILES_PER_PART : (part + 1) * FILES_PER_PART]
            yield part, [self._item(root, path) for root, path in files]

    def _item(self, root: Path, path: str) -> Item:
        shown = str(root / local_name(path))
        return Item(key=path_key(shown), path=shown, open=partial(_decode, root.absolute(), path, shown))

    def digest(self) -> str:
        return "\n".join(f"{root / local_name(path)}\0{_status(root, path)}" for root, path in self._files)

    def examples(self) -> list[tuple[Path, str]]:
        return list(self._files[:: -(-len(self._files) // _EXAMPLES)])


def _decode(root: Path, path: str, shown: str, frontend: Frontend) -> list[Piece]:
    try:
        return [file_piece(open_store(root), path, frontend)]
    except AudioError as error:
        raise AudioError(shown, error.reason, error.detail) from None


def _status(root: Path, path: str) -> object:
    return open_store(root).status(path) if root.exists() else None


class WaveSource(Source):
    """Waveforms in memory, numbered from 0; one part."""

    parts = 1

    def __init__(self, pieces: Sequence[Callable[[Frontend], Piece]]) -> None:
        self._pieces = pieces
        self.samples = len(pieces)

    def items(self, wanted: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
        yield (
            0,
            [
                Item(key=str(number), path="", open=partial(_alone, make))
                for number, make in enumerate(self._pieces)
            ],
        )

    def digest(self) -> str:
        raise NotImplementedError

    def examples(self) -> list[tuple[Path, str]]:
        return []


def _alone(make: Callable[[Frontend], Piece], frontend: Frontend) -> list[Piece]:
    return [make(frontend)]


class Sources(Source):
    """Several sources one after another, whose parts are numbered through."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.parts = sum(source.parts for source in sources)
        self.samples = sum(source.samples for source in sources)

    def items(self, wanted: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
        first = 0
        for source in self.sources:
            own = {part - first for part in wanted if first <= part < first + source.parts}
            for part, items in source.items(own) if own else ():
                yield first + part, items
            first += source.parts

    def all_items(self) -> Iterator[Item]:
        """Yield all tracks."""
        for _, items in self.items(range(self.parts)):
            yield from items

    def digest(self) -> str:
        text = "\n\n".join(source.digest() for source in self.sources)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def examples(self) -> list[tuple[Path, str]]:
        return [example for source in self.sources for example in source.examples()]


def open_sources(
    given: Given | Iterable[Given], *, splits: Sequence[str] | None = None, data_dir: Path = Path("data")
) -> Sources:
    """Return the tracks of all that is `given`, each file once.

    A source is an open shard set, the folder of one or its name under `data_dir`/shards (a path that exists
    and has a slash is not taken for a name); an audio file of any format; a folder or zip of audio, with its
    sub-folders; or "@" and the path of a text file with one source per line, for more files than a command
    line takes. Of shard sets, `splits` are read, by default all.

    Raises `DataError` for a source that is none of these or holds nothing, `ConfigError` for `splits` without
    a shard set.
    """
    words = [given] if isinstance(given, Given) else list(given)
    shard_sets: list[ShardSet] = []
    files: dict[tuple[Path, str], None] = {}
    for word in words:
        for found in _resolved(word, data_dir):
            if isinstance(found, ShardSet):
                shard_sets.append(found)
            else:
                files[found] = None
    if splits is not None and not shard_sets:
        raise ConfigError(f"splits = {list(splits)} are for shard sets, and no source is one: leave it out.")
    if not shard_sets and not files:
        raise DataError(f"no source in {[str(word) for word in words]}: name audio files, folders or shards.")
    sources: list[Source] = [ShardSource(one, list(splits or one.splits)) for one in shard_sets]
    return Sources([*sources, FileSource(list(files))] if files else sources)


def _resolved(word: Given, data_dir: Path) -> Iterator[ShardSet | tuple[Path, str]]:
    if isinstance(word, ShardSet):
        yield word
    elif str(word).startswith("@"):
        for line in _lines(Path(str(word)[1:])):
            found = _found(line, data_dir)
            # One file of a million may be missing: it is listed as such, and the others go on.
            yield from found if found is not None else [_file(Path(line))]
    else:
        found = _found(str(word), data_dir)
        if found is None:
            raise DataError(
                f"{str(word)!r} is no source: there is no such file or folder, and no shard set "
                f"{data_dir / 'shards' / word}; give audio files, folders, zips, shard sets, or @ and a file "
                f"that lists them."
            )
        yield from found


def _found(word: str, data_dir: Path) -> Iterable[ShardSet | tuple[Path, str]] | None:
    """Return what `word` means, or None if there is nothing by that name."""
    if is_url(word):
        return [find_shards(word)]
    path = Path(word)
    is_path = "/" in word and path.exists()  # "mine/" is the folder, "mine" may be the name of shards
    for folder in (path,) if is_path else (path, data_dir / "shards" / word):
        if (folder / MANIFEST).is_file():
            return [read_manifest(folder)]
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        return _audio_in(path)
    return [_file(path)] if path.exists() else None


def _audio_in(root: Path) -> list[tuple[Path, str]]:
    found = [(root, path) for path in audio_paths(open_store(root))]
    if not found:
        raise DataError(
            f"{root} has no audio and is no shard set: files that end in {', '.join(ENDINGS)} are expected, "
            f"or a {MANIFEST}."
        )
    return found


def _file(path: Path) -> tuple[Path, str]:
    return path.parent, path.name


def _lines(path: Path) -> list[str]:
    try:
        text = read_regular(path, LIST_LIMIT).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error.strerror}.") from None
    return [line for line in text.splitlines() if line.strip()]
