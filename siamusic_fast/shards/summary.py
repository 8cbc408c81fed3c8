"""What a shard set holds, in figures."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.marks import count_marks
from siamusic_fast.shards.tables import PackedTrack, read_rejects, read_tracks


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split; segments of long tracks count as tracks."""

    tracks: int
    seconds: float
    shards: int
    bytes: int
    classes: dict[str, int]
    """Tracks of every class of the shard set, in their order."""
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A shard set."""

    splits: dict[str, SplitSummary]
    marks: dict[str, int]
    """Tracks of each of `marks.MARKS`, those without any left out."""
    equal_audio: tuple[tuple[PackedTrack, ...], ...]
    """Groups of tracks whose samples are the same, though their files may differ."""

    def of_class(self, name: str) -> int:
        """Return how many tracks of all splits are of this class."""
        return sum(split.classes[name] for split in self.splits.values())

    @property
    def unlabelled(self) -> int:
        """Tracks without a class."""
        return sum(split.unlabelled for split in self.splits.values())


def summarize(shard_set: ShardSet) -> Summary:
    """Count what is in `shard_set` by its manifest and tracks.csv. Raises `DataError` if that is damaged."""
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    audio: Counter[int] = Counter()
    for track in read_tracks(shard_set.folder):
        classes[track.split][track.genre] += 1
        seconds[track.split] += track.seconds
        audio[_short(track)] += 1
    splits = {
        split: SplitSummary(
            tracks=shard_set.tracks([split]),
            seconds=seconds[split],
            shards=len(shards),
            bytes=sum(shard.bytes for shard in shards),
            classes={name: classes[split][name] for name in shard_set.classes},
            unlabelled=classes[split][""],
        )
        for split, shards in shard_set.splits.items()
    }
    repeated = {short for short, count in audio.items() if count > 1}
    marks = count_marks(read_tracks(shard_set.folder), read_rejects(shard_set.folder))
    return Summary(splits=splits, marks=marks, equal_audio=tuple(_equal_audio(shard_set, repeated)))


def _equal_audio(shard_set: ShardSet, repeated: set[int]) -> Iterator[tuple[PackedTrack, ...]]:
    """Yield the groups of tracks with the same checksum, among those whose short ones are `repeated`."""
    groups: dict[str, list[PackedTrack]] = defaultdict(list)
    for track in read_tracks(shard_set.folder) if repeated else ():
        if _short(track) in repeated:
            groups[track.sha256].append(track)
    yield from (tuple(members) for members in groups.values() if len(members) > 1)


def _short(track: PackedTrack) -> int:
    """Return enough of the checksum to tell most tracks apart: a million of them are to fit in memory."""
    return int(track.sha256[:15], 16)
