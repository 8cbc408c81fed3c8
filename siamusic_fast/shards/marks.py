"""What is said of packed tracks that are not quite as their files promised: marks, told from tracks.csv."""

from collections import Counter
from collections.abc import Iterable, Iterator

from siamusic_fast.audio.decode import SHORT_SECONDS
from siamusic_fast.audio.rejects import CONFLICT, Reject
from siamusic_fast.shards.tables import PackedTrack

MARKS = {
    "damaged": "packets of the file did not decode and are left out",
    "shorter": "the track is shorter than its header promises",
    "clipped": "samples beyond full scale were set to it",
    "rescaled": "more than 1% of the track was beyond full scale: it was divided by its peak",
    "one channel": "the channels cancel each other: the loudest was taken",
    "label conflict": "a file with the same bytes, which was left out, has another label",
}
"""Mark and meaning; `damaged`, `shorter`, `rescaled` and `one channel` are of a whole track."""


def marks_of(track: PackedTrack) -> Iterator[str]:
    """Yield the marks of one row of tracks.csv."""
    if track.damaged_packets:
        yield "damaged"
    if track.seconds_missing > SHORT_SECONDS:
        yield "shorter"
    if track.clipped:
        yield "clipped"
    if track.gain != 1:
        yield "rescaled"
    if track.channel is not None:
        yield "one channel"


def count_marks(tracks: Iterable[PackedTrack], rejects: Iterable[Reject]) -> dict[str, int]:
    """Return how many tracks have each mark, in the order of `MARKS`; a track in segments counts once."""
    counts: Counter[str] = Counter()
    last = ""
    marks: set[str] = set()
    for track in tracks:
        if track.track_id != last:
            counts.update(marks)
            last, marks = track.track_id, set()
        marks.update(marks_of(track))
    counts.update(marks)
    counts["label conflict"] = sum(
        reject.reason == "duplicate" and f", {CONFLICT} '" in reject.detail for reject in rejects
    )
    return {mark: counts[mark] for mark in MARKS if counts[mark]}
