"""The first look at a corpus, before anything is decoded: which files are there, and which twice."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.rejects import Reject, duplicate
from siamusic_fast.audio.store import Store
from siamusic_fast.errors import DataError
from siamusic_fast.progress import SILENT, Progress, Task

_BLOCK = 1 << 20
_GLANCE = 4096
"""Bytes in the middle of a file that are compared before all of it is: clips often have the same size."""


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to decode."""

    tracks: list[Track]
    """Those whose files are there and not empty, in the order of their paths."""
    sizes: list[int]
    """In bytes, of the files of `tracks`."""
    stamps: list[int]
    """`Store.stamp` of the files of `tracks`."""
    rejects: list[Reject]
    """The others: missing, outside, empty or duplicate."""
    kept_of: dict[str, str]
    """Of every duplicate, by path, the path of the file that is kept in its place."""


def look(corpus: Corpus, store: Store, progress: Progress = SILENT) -> Look:
    """Look at all files of `corpus`: those of equal size are read, the others are not.

    Of files with the same bytes one is kept: one with a class rather than one without, then the one with the
    first path.
    """
    there: list[Track] = []
    sizes: list[int] = []
    rejects: list[Reject] = []
    for track in sorted(corpus.tracks, key=lambda track: track.path):
        size = _size(store, track.path)
        if size:
            there.append(track)
            sizes.append(size)
        elif size == 0:
            rejects.append(Reject(track.path, "empty", "0 bytes"))
        elif store.is_outside(track.path):
            rejects.append(Reject(track.path, "outside", "a link that leads out of the folder of audio"))
        else:
            rejects.append(Reject(track.path, "missing", "no such file, or no regular one"))
    duplicates = _duplicates(there, sizes, store, progress)
    if duplicates:
        rejects += [
            duplicate(track.path, track.genre, kept.path, kept.genre) for track, kept in duplicates.values()
        ]
        kept = [place for place, track in enumerate(there) if track.path not in duplicates]
        there = [there[place] for place in kept]
        sizes = [sizes[place] for place in kept]
    kept_of = {path: kept.path for path, (_, kept) in duplicates.items()}
    return Look(there, sizes, [store.stamp(track.path) for track in there], rejects, kept_of)


def with_fate_of_kept(rejects: Sequence[Reject], found: Look) -> Iterator[Reject]:
    """Yield `rejects`; duplicates say so if the file that was kept in their place was left out itself."""
    reasons = {reject.path: reject.reason for reject in rejects}
    for reject in rejects:
        reason = reasons.get(found.kept_of.get(reject.path, ""))
        detail = f"{reject.detail}; left out as well: {reason}"
        yield replace(reject, detail=detail) if reason else reject


def _size(store: Store, path: str) -> int | None:
    try:
        return store.size(path)
    except DataError:  # a path that leads outside
        return None


def _duplicates(
    tracks: list[Track], sizes: list[int], store: Store, progress: Progress
) -> dict[str, tuple[Track, Track]]:
    """Return those of `tracks` that are copies, by path, each with the one that is kept."""
    of_size: dict[int, list[Track]] = defaultdict(list)
    for track, size in zip(tracks, sizes, strict=True):
        of_size[size].append(track)
    alike = {size: members for size, members in of_size.items() if len(members) > 1}
    found: dict[str, tuple[Track, Track]] = {}
    with progress.task("Comparing", sum(map(len, alike.values())), "files of equal size") as task:
        for size, members in alike.items():
            for glanced in _alike(members, store, size // 2, _GLANCE, task):
                for same in _alike(glanced, store, 0, None, None):
                    kept, *others = sorted(same, key=lambda track: (track.genre == "", track.path))
                    found.update((track.path, (track, kept)) for track in others)
    return found


def _alike(
    tracks: Iterable[Track], store: Store, start: int, length: int | None, task: Task | None
) -> Iterator[list[Track]]:
    """Yield groups of more than one track whose files agree in `length` bytes from `start`, or to the end."""
    groups: dict[bytes, list[Track]] = defaultdict(list)
    for track in tracks:
        digest = _digest(store, track.path, start, length)
        if digest:
            groups[digest].append(track)
        if task:
            task.advance()
    yield from (members for members in groups.values() if len(members) > 1)


def _digest(store: Store, path: str, start: int, length: int | None) -> bytes | None:
    """Return a digest of that part of a file, or None if it cannot be read, which decoding it will tell.

    Of a file in a zip, the checksum of all of it stands for a part: no part is read without all before it.
    """
    if length is not None and (checksum := store.crc32(path)) is not None:
        return checksum.to_bytes(4, "big")
    digest = hashlib.sha256()
    try:
        with store.open(path) as file:
            file.seek(start)
            if length is not None:
                digest.update(file.read(length))
            else:
                while block := file.read(_BLOCK):
                    digest.update(block)
    except OSError:
        return None
    return digest.digest()
