"""The tracks that a loader reads: how many, how long, of which class, and where in the shards."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.shards.codec import WAV_HEADER
from siamusic_fast.shards.index import read_index, sample_name
from siamusic_fast.shards.manifest import DamageError, Shard, ShardSet, check_tracks
from siamusic_fast.shards.remote_set import fetch_indices
from siamusic_fast.shards.track_table import read_track_table


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Some tracks of a shard set, numbered from 0 in the order of the shards; arrays have a row for each.

    If a track was packed in segments, each segment counts as a track here.
    """

    shard_set: ShardSet
    shards: tuple[Shard, ...]
    shard: Array
    """Index in `shards`, int64."""
    index_in_shard: Array
    """Index of the track in its shard, int64."""
    offset: Array
    """First byte of its audio file in the tar, int64."""
    size: Array
    """Size of that file, in bytes, int64."""
    cls_offset: Array
    """First byte of its label in the tar, int64."""
    samples: Array
    """Length of the audio, in samples, int64."""
    labels: Array | None = None
    """Index of the class in `shard_set.classes`, -1 for none, int64. None if not asked for."""
    tags: Array | None = None
    """1 where a track has a tag and 0 where it has not, [tracks, tags], uint8, in the order of
    `shard_set.tags`. None if labels are not asked for."""
    names: tuple[str, ...] = ()
    """Name of each track; segments of a track share its name. Empty if not asked for."""
    groups: tuple[str, ...] = ()
    """Group of each track, such as its artist, "" if it is unknown. Empty if not asked for."""

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def per_shard(self) -> Array:
        """Tracks in each of `shards`, int64."""
        return np.bincount(self.shard, minlength=len(self.shards))

    def path(self, track: int) -> Path:
        """Return the tar that `track` lies in, of a shard set on a disk."""
        return self.shard_set.path(self.shards[int(self.shard[track])].file)

    def damaged(self, track: int, what: object) -> DataError:
        """Return the error that says that `track` cannot be read as it should."""
        shard = self.shards[int(self.shard[track])]
        name = sample_name(self.shard_set, shard, int(self.index_in_shard[track]))
        return DamageError(self.shard_set.shown(shard.file), f"{name}: {what}")

    def only(self, chosen: Array) -> "Tracks":
        """Return the tracks numbered `chosen`, which ascend."""
        arrays: dict[str, Any] = {
            name: values[chosen] for name, values in vars(self).items() if isinstance(values, np.ndarray)
        }
        names, groups = (
            tuple(values[track] for track in chosen.tolist()) if values else ()
            for values in (self.names, self.groups)
        )
        return dataclasses.replace(self, names=names, groups=groups, **arrays)

    def of_shard(self, place: int) -> "Tracks":
        """Return the tracks of `shards[place]`, which know of no other shard and name files absolutely."""
        first, end = np.searchsorted(self.shard, [place, place + 1])
        alone = self.only(np.arange(first, end))
        return dataclasses.replace(
            alone,
            shard_set=dataclasses.replace(self.shard_set, folder=self.shard_set.folder.absolute(), splits={}),
            shards=(self.shards[place],),
            shard=np.zeros_like(alone.shard),
        )


def open_tracks(
    shard_set: ShardSet, splits: Sequence[str], *, target: str | None = None, labels: bool = False
) -> Tracks:
    """Return the tracks of `splits`; with `labels` or a `target`, their classes, tags, names and groups too.

    The `target` leaves out tracks without a class, or those without tags.

    Compares every index and tracks.csv with its checksum in the manifest, and the first and the last sample
    of every tar on a disk with its index. Raises `DataError` if something does not fit, and for a split
    without such tracks.
    """
    labels = labels or target is not None
    shards = shard_set.shards(splits, labelled_only=target == "class")
    if shard_set.url:
        fetch_indices(shard_set, shards)
    counts = [shard.tracks for shard in shards]
    offset, size, cls_offset = (np.empty(sum(counts), np.int64) for _ in range(3))
    first = 0
    for shard in shards:  # one index at a time: of ten million tracks, all of them take gigabytes
        index, here = read_index(shard_set, shard), slice(first, first + shard.tracks)
        offset[here], size[here], cls_offset[here] = index.audio_offset, index.audio_size, index.cls_offset
        first += shard.tracks
    table = None
    if labels or shard_set.codec != "wav":
        table = read_track_table(shard_set, shards)
    else:
        check_tracks(shard_set)
    tracks = Tracks(
        shard_set=shard_set,
        shards=shards,
        shard=np.repeat(np.arange(len(shards)), counts),
        index_in_shard=np.concatenate([np.arange(count) for count in counts]),
        offset=offset,
        size=size,
        cls_offset=cls_offset,
        samples=table.samples if table and shard_set.codec != "wav" else (size - WAV_HEADER) // 2,
        labels=table.labels if table and labels else None,
        tags=table.tags if table and labels else None,
        names=tuple(table.track_ids) if table and labels else (),
        groups=tuple(table.groups) if table and labels else (),
    )
    return _with_tags(tracks, splits) if target == "tags" else tracks


def count_tracks(shard_set: ShardSet, splits: Sequence[str], target: str) -> int:
    """Return how many tracks `open_tracks` returns for `splits` and `target`; errors are those of it."""
    if target == "class":
        return shard_set.tracks(splits, labelled_only=True)
    return len(open_tracks(shard_set, splits, target=target))


def _with_tags(tracks: Tracks, splits: Sequence[str]) -> Tracks:
    """Return those of `tracks` that have a tag. Raises `DataError` for a split that has none of them."""
    assert tracks.tags is not None
    chosen = np.flatnonzero(tracks.tags.any(axis=1))
    for split in splits:
        places = [tracks.shards.index(shard) for shard in tracks.shard_set.splits[split]]
        if not np.isin(tracks.shard[chosen], places).any():
            raise DataError(
                f"{tracks.shard_set.place} has no tracks with tags in split {split!r}: pack the audio again "
                f"with tags in it (on the command line --labels FILE.csv --tags; the file may have a column "
                f"split)."
            )
    return tracks.only(chosen)


def with_label_fraction(tracks: Tracks, label_fraction: float, seed: int, target: str = "class") -> Tracks:
    """Return a fraction of the tracks of each class, rounded, at least one; the same for a `seed`.

    If the `target` is tags, it is a fraction of all tracks, whatever their tags. A larger fraction has the
    tracks of a smaller one.
    A track that was packed in segments comes with all of them. Raises `ConfigError` for a fraction outside
    (0, 1].
    """
    if not 0 < label_fraction <= 1:
        raise ConfigError(
            f"label_fraction = {label_fraction:g} must be above 0 and at most 1 (on the command line "
            f"--label-fraction)."
        )
    if label_fraction == 1:
        return tracks
    assert tracks.labels is not None
    labels = [0] * len(tracks) if target == "tags" else tracks.labels.tolist()
    by_class: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, (label, name) in enumerate(zip(labels, tracks.names, strict=True)):
        by_class[label][name].append(number)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in sorted(by_class):
        members = list(by_class[label].values())
        for place in rng.permutation(len(members))[: max(1, round(label_fraction * len(members)))]:
            chosen += members[place]
    return tracks.only(np.sort(chosen))
