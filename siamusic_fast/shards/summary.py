"""What a shard set holds, in figures: tracks by split and class, marks of odd tracks, equal recordings."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from siamusic_fast.audio.decode import SHORT_SECONDS
from siamusic_fast.audio.rejects import CONFLICT, Reject
from siamusic_fast.shards.manifest import ShardSet, check_tracks
from siamusic_fast.shards.tables import PackedTrack, read_rejects, read_tracks

MARKS = {
    "damaged": "packets of the file did not decode and are left out",
    "shorter": "the track is shorter than its header promises",
    "clipped": "samples beyond full scale were set to it",
    "rescaled": "more than 1% of the track was beyond full scale: it was divided by its peak",
    "one channel": "the channels cancel each other: the loudest was taken",
    "label conflict": "a file with the same bytes, which was left out, has another label",
}
"""Marks of packed tracks that are not quite as their files promised, and the meaning of each."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Figures of one split. Segments of long tracks count as tracks."""

    tracks: int
    seconds: float
    shards: int
    bytes: int
    classes: dict[str, int]
    """Number of tracks of every class of the shard set, in their order."""
    unlabelled: int
    """Number of tracks without a class."""
    tags: dict[str, int]
    """Number of tracks with every tag of the shard set, in their order."""
    groups: int
    """Number of groups, such as artists. Tracks whose group is unknown are in none."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a shard set."""

    splits: dict[str, SplitSummary]
    marks: dict[str, int]
    """Number of tracks with each of `MARKS`, without those that no track has."""
    groups: int
    """Number of groups of all splits."""
    divided_groups: int
    """Number of groups that are in more than one split."""
    equal_audio: tuple[tuple[PackedTrack, ...], ...]
    """Groups of tracks with equal samples; their files may differ."""

    def of_class(self, name: str) -> int:
        """Return how many tracks of all splits are of this class."""
        return sum(split.classes[name] for split in self.splits.values())

    def with_tag(self, name: str) -> int:
        """Return how many tracks of all splits have this tag."""
        return sum(split.tags[name] for split in self.splits.values())

    @property
    def unlabelled(self) -> int:
        """Number of tracks without a class."""
        return sum(split.unlabelled for split in self.splits.values())


def summarize(shard_set: ShardSet) -> Summary:
    """Count what is in `shard_set` by its manifest and tracks.csv. Raises `DataError` if that is damaged."""
    check_tracks(shard_set)
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    groups: dict[str, set[str]] = defaultdict(set)
    audio: Counter[bytes] = Counter()
    for track in read_tracks(shard_set.folder):
        classes[track.split][track.genre] += 1
        tags[track.split].update(track.tags)
        seconds[track.split] += track.seconds
        if track.group:
            groups[track.split].add(track.group)
        audio[bytes.fromhex(track.sha256)] += 1
    splits = {
        split: SplitSummary(
            tracks=shard_set.tracks([split]),
            seconds=seconds[split],
            shards=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            classes={name: classes[split][name] for name in shard_set.classes},
            unlabelled=classes[split][""],
            tags={name: tags[split][name] for name in shard_set.tags},
            groups=len(groups[split]),
        )
        for split, shards in shard_set.splits.items()
    }
    repeated = {sha256 for sha256, count in audio.items() if count > 1}
    splits_of_group = Counter(group for names in groups.values() for group in names)
    marks = count_marks(read_tracks(shard_set.folder), read_rejects(shard_set.folder))
    return Summary(
        splits=splits,
        marks=marks,
        groups=len(splits_of_group),
        divided_groups=sum(count > 1 for count in splits_of_group.values()),
        equal_audio=_equal_audio(shard_set, repeated),
    )


def count_marks(tracks: Iterable[PackedTrack], rejects: Iterable[Reject]) -> dict[str, int]:
    """Return how many tracks have each mark, in the order of `MARKS`; a track in segments counts once.

    `tracks` are rows of tracks.csv, in which the segments of a track follow each other.
    """
    counts: Counter[str] = Counter()
    last = ""
    marks: set[str] = set()
    for track in tracks:
        if track.track_id != last:
            counts.update(marks)
            last, marks = track.track_id, set()
        marks.update(_marks(track))
    counts.update(marks)
    counts["label conflict"] = sum(
        reject.reason == "duplicate" and f", {CONFLICT} '" in reject.detail for reject in rejects
    )
    return {mark: counts[mark] for mark in MARKS if counts[mark]}


def _marks(track: PackedTrack) -> list[str]:
    there = {
        "damaged": track.damaged_packets > 0,
        "shorter": track.seconds_missing > SHORT_SECONDS,
        "clipped": track.clipped > 0,
        "rescaled": track.gain != 1,
        "one channel": track.channel is not None,
    }
    return [mark for mark, applies in there.items() if applies]


def _equal_audio(shard_set: ShardSet, repeated: set[bytes]) -> tuple[tuple[PackedTrack, ...], ...]:
    """Return the groups of tracks with the same checksum, those whose checksums are `repeated`."""
    groups: dict[str, list[PackedTrack]] = defaultdict(list)
    for track in read_tracks(shard_set.folder) if repeated else ():
        if bytes.fromhex(track.sha256) in repeated:
            groups[track.sha256].append(track)
    return tuple(map(tuple, groups.values()))
