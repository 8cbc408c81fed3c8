"""Scans a corpus before anything is decoded, for missing, empty and duplicate files."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.rejects import Reject, reject_duplicate
from siamusic_fast.audio.store import FileStatus, Store, leads_outside
from siamusic_fast.progress import SILENT, Progress

Found = tuple[Track, FileStatus]

_SAMPLE_BYTES = 4096
"""Bytes in the middle of a file that are compared before all of it is: clips often have the same size."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The files that there are to decode, and those that are left out already."""

    tracks: list[Track]
    """The tracks whose files are there and not empty, in the order of their paths."""
    sizes: list[int]
    """Sizes in bytes of the files of `tracks`."""
    stamps: list[int]
    """`FileStatus.stamp` of the files of `tracks`."""
    rejects: list[Reject]
    """The other files: missing, outside, empty or duplicate."""


def scan(corpus: Corpus, store: Store, progress: Progress = SILENT) -> ScanResult:
    """Look for all files of `corpus`. Files of equal size are read, the others are not.

    Of files with the same bytes one is kept: one with a class rather than one without, then the one with the
    first path.
    """
    found: list[Found] = []
    rejects: list[Reject] = []
    for track in sorted(corpus.tracks, key=lambda track: track.path):
        status = None if leads_outside(track.path) else store.status(track.path)
        if status and status.size:
            found.append((track, status))
        elif status:
            rejects.append(Reject(track.path, "empty", "0 bytes"))
        elif store.is_outside(track.path):
            rejects.append(Reject(track.path, "outside", "a link that leads out of the folder of audio"))
        else:
            rejects.append(Reject(track.path, "missing", "no such file, or no regular one"))
    duplicates = _duplicates(found, store, progress)
    rejects += [
        reject_duplicate(one.path, one.genre, kept.path, kept.genre) for one, kept in duplicates.values()
    ]
    found = [(track, status) for track, status in found if track.path not in duplicates]
    return ScanResult(
        tracks=[track for track, _ in found],
        sizes=[status.size for _, status in found],
        stamps=[status.stamp for _, status in found],
        rejects=rejects,
    )


def _duplicates(found: Iterable[Found], store: Store, progress: Progress) -> dict[str, tuple[Track, Track]]:
    """Return the tracks that are copies, by path, each with the track that is kept."""
    by_size = _alike(found, lambda one: one[1].size)
    duplicates: dict[str, tuple[Track, Track]] = {}
    with progress.task("Comparing", sum(map(len, by_size)), "files of equal size") as task:

        def sample(one: Found) -> bytes | int | None:
            """Return what tells most files apart: a part of the file or, in a zip, its checksum."""
            task.advance()
            track, status = one
            return status.crc32 or _digest(store, track.path, status.size // 2, _SAMPLE_BYTES)

        for group in by_size:
            for similar in _alike(group, sample):
                for same in _alike(similar, lambda one: _digest(store, one[0].path)):
                    kept, *others = sorted(
                        (track for track, _ in same), key=lambda t: (t.genre == "", t.path)
                    )
                    duplicates.update((track.path, (track, kept)) for track in others)
    return duplicates


def _alike(found: Iterable[Found], key: Callable[[Found], object]) -> list[list[Found]]:
    """Return the groups of files with the same `key`, if they have more than one. None is no key."""
    groups: dict[object, list[Found]] = defaultdict(list)
    for one in found:
        if (value := key(one)) is not None:
            groups[value].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _digest(store: Store, path: str, start: int = 0, length: int | None = None) -> bytes | None:
    """Return a digest of a part of a file. It is None if the file cannot be read: decoding reports that."""
    try:
        with store.open(path) as file:
            file.seek(start)
            content = file if length is None else io.BytesIO(file.read(length))
            return hashlib.file_digest(content, "sha256").digest()  # type: ignore[arg-type]
    except OSError:
        return None
