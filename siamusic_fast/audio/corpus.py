"""A corpus: audio files, and the class or the tags and the split of each."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from siamusic_fast.audio.store import path_bytes

SPLITS = ("training", "validation", "test")
MAX_CLASSES = 100_000
"""Number of classes that fit into a shard, where a label has five characters."""
TAG_SEPARATOR = "|"
"""Stands between the tags of a track in a table. No tag has it in its name."""

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class Track:
    """One audio file that a corpus lists."""

    id: str
    """Name that the corpus gives the track: FMA's six digits. It is empty if it gives none."""
    path: str
    """Path relative to the folder of the corpus, with forward slashes. For row 17 of a Parquet or Arrow file
    it is that of the file, followed by #17."""
    split: str
    genre: str
    """Class of the track. It is empty if the class is unknown."""
    tags: tuple[str, ...] = ()
    """Tags of the track, in alphabetical order."""
    group: str = ""
    """Group of the track, which is its artist in most corpora. It is empty if the group is unknown."""

    @property
    def key(self) -> str:
        """Name of the sample in its shard, unique in the corpus: the id of the track, or made of its path."""
        return self.id or path_key(self.path)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A folder or zip of audio, and what is known about each file."""

    name: str
    folder: Path | str
    """Where its files are. Text is a URL, such as s3://bucket/music."""
    tracks: Sequence[Track]
    in_tables: bool = False
    """Whether the tracks are rows of Parquet or Arrow files in `folder`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Genres in alphabetical order; the label of a track is the place of its genre in here, or -1."""
        return tuple(sorted({track.genre for track in self.tracks} - {""}))

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags in alphabetical order."""
        return tuple(sorted({tag for tags in {track.tags for track in self.tracks} for tag in tags}))


def path_key(path: str) -> str:
    """Return the name of a sample, which is a function of `path` alone and different for every path.

    Up to 40 letters and digits of the file's name make it readable, 64 bits of a hash of the path unique.
    """
    name = path.rpartition("/")[2].rpartition(".")[0]
    words = _NOT_PLAIN.sub("-", name)[:40].strip("-")
    digest = hashlib.blake2b(path_bytes(path), digest_size=8).hexdigest()
    return f"{words}-{digest}" if words else digest


def with_top_tags(tracks: Iterable[Track], number: int) -> tuple[Track, ...]:
    """Return `tracks` with those `number` of their tags alone that most tracks have; of equals the first."""
    tracks = tuple(tracks)
    counts = Counter(tag for track in tracks for tag in track.tags)
    top = set(sorted(counts, key=lambda tag: (-counts[tag], tag))[:number])
    return tuple(replace(track, tags=tuple(tag for tag in track.tags if tag in top)) for track in tracks)
