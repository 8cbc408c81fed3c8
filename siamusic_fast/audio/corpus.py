"""A corpus: audio files, and the class and split of each."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True, slots=True)
class Track:
    """One audio file that a corpus lists."""

    key: str
    """Name of the sample in its shard, unique in the corpus: FMA's six digits."""
    path: str
    """Path relative to the folder of the corpus, with forward slashes."""
    split: str
    genre: str
    """Class of the track. It is empty if the class is unknown."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A folder or zip of audio, and what is known about each file."""

    name: str
    folder: Path
    tracks: tuple[Track, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Genres in alphabetical order; the label of a track is the place of its genre in here, or -1."""
        return tuple(sorted({track.genre for track in self.tracks} - {""}))
