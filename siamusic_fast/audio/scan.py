"""Scans a corpus before anything is decoded, for missing, empty and duplicate files."""

import hashlib
import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.rejects import Reject, reject_duplicate
from siamusic_fast.audio.store import Store, leads_outside
from siamusic_fast.progress import SILENT, Progress

_SAMPLE_BYTES = 4096
"""Bytes in the middle of a file that are compared before all of it is: clips often have the same size."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The files that there are to decode, and those that are left out already."""

    tracks: list[Track]
    """The tracks whose files are there and not empty, in the order of their paths."""
    sizes: "array[int]"
    """Sizes in bytes of the files of `tracks`."""
    stamps: "array[int]"
    """`FileStatus.stamp` of the files of `tracks`."""
    rejects: list[Reject]
    """The other files: missing, outside, empty or duplicate."""


def scan(corpus: Corpus, store: Store, progress: Progress = SILENT) -> ScanResult:
    """Look for all files of `corpus`. Files of equal size are read, the others are not.

    Of files with the same bytes one is kept: one with a class rather than one without, then the one with the
    first path.
    """
    tracks: list[Track] = []
    sizes, stamps, checksums = array("q"), array("q"), array("Q")
    rejects: list[Reject] = []
    for track in sorted(corpus.tracks, key=attrgetter("path")):
        status = None if leads_outside(track.path) else store.status(track.path)
        if status and status.size:
            tracks.append(track)
            sizes.append(status.size)
            stamps.append(status.stamp)
            checksums.append(status.crc32 or 0)
        elif status:
            rejects.append(Reject(track.path, "empty", "0 bytes"))
        elif store.is_outside(track.path):
            rejects.append(Reject(track.path, "outside", "a link that leads out of the folder of audio"))
        else:
            rejects.append(Reject(track.path, "missing", "no such file, or no regular one"))
    kept = _duplicates(tracks, sizes, checksums, store, progress)
    if not kept:
        return ScanResult(tracks=tracks, sizes=sizes, stamps=stamps, rejects=rejects)
    for one, other in kept.items():
        copy, original = tracks[one], tracks[other]
        rejects.append(reject_duplicate(copy.path, copy.genre, original.path, original.genre))
    left = [place for place in range(len(tracks)) if place not in kept]
    return ScanResult(
        tracks=[tracks[place] for place in left],
        sizes=array("q", map(sizes.__getitem__, left)),
        stamps=array("q", map(stamps.__getitem__, left)),
        rejects=rejects,
    )


def _duplicates(
    tracks: Sequence[Track],
    sizes: "array[int]",
    checksums: "array[int]",
    store: Store,
    progress: Progress,
) -> dict[int, int]:
    """Return the places of the tracks that are copies, each with the place of the track that is kept."""
    by_size, counts = _of_equal_size(np.asarray(sizes))
    duplicates: dict[int, int] = {}
    with progress.task("Comparing", len(by_size), "files of equal size") as task:

        def sample(place: int) -> bytes | int | None:
            """Return what tells most files apart: a part of the file or, in a zip, its checksum."""
            task.advance()
            return checksums[place] or _digest(store, tracks[place].path, (sizes[place] // 2, _SAMPLE_BYTES))

        places = iter(by_size)
        for count in counts:
            for similar in _alike(map(int, itertools.islice(places, count)), sample):
                for same in _alike(similar, lambda place: _digest(store, tracks[place].path)):
                    best, *others = sorted(same, key=lambda place: (tracks[place].genre == "", place))
                    duplicates.update(dict.fromkeys(others, best))
    return duplicates


def _of_equal_size(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the files that share their size, by size, and how many files have each size."""
    order = np.argsort(sizes, kind="stable")
    first = np.flatnonzero(np.diff(sizes[order], prepend=0))  # of each size; no file has 0 bytes
    counts = np.diff(first, append=len(sizes))
    return order[np.repeat(counts > 1, counts)], counts[counts > 1]


def _alike(places: Iterable[int], key: Callable[[int], object]) -> Iterator[list[int]]:
    """Yield the places of files with the same `key`, if they are more than one. None is no key."""
    groups: dict[object, list[int]] = defaultdict(list)
    for place in places:
        if (value := key(place)) is not None:
            groups[value].append(place)
    return (group for group in groups.values() if len(group) > 1)


def _digest(store: Store, path: str, part: tuple[int, int] | None = None) -> bytes | None:
    """Return a digest of a file, or of a part of it: first byte and length.

    It is None if the file cannot be read: decoding reports that.
    """
    try:
        if part:
            return hashlib.sha256(store.read_part(path, *part)).digest()
        with store.open(path) as file:
            return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    except OSError:
        return None
