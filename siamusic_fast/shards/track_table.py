"""The columns of tracks.csv that loading and scoring need, fast enough for a million tracks."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.shards.manifest import TRACKS, Shard, ShardSet, check_tracks
from siamusic_fast.shards.tables import TRACK_COLUMNS, open_table, tags_in_cell

_TRACK_ID, _CLASS, _SAMPLES, _SHARD, _TAGS, _GROUP = map(
    TRACK_COLUMNS.index, ("track_id", "class", "samples", "shard", "tags", "group")
)


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """What tracks.csv says of the tracks, or segments, of some shards, in their order."""

    labels: NDArray[np.int64]
    """Label of each, [tracks]: the place of its class in `ShardSet.classes`, -1 for none."""
    tags: NDArray[np.uint8]
    """1 where a track has a tag and 0 where it has not, [tracks, tags], in the order of `ShardSet.tags`."""
    samples: NDArray[np.int64]
    """Length of the audio of each in samples, [tracks], at the sample rate of the shard set."""
    track_ids: list[str]
    """Key of the track that each is, or is a segment of."""
    groups: list[str]
    """Group of each, such as its artist, and "" where it is unknown. Equal names are one object."""


def read_track_table(shard_set: ShardSet, shards: Sequence[Shard]) -> TrackTable:
    """Return what tracks.csv says of the tracks of `shards`, in the order of `shards`.

    Raises `DataError` if tracks.csv has another SHA-256 than the manifest says, if it has another number of
    rows on a shard, a class that the manifest does not have, or a class in a shard of tracks without classes
    and the other way round.
    """
    check_tracks(shard_set)
    wanted = {shard.file: shard for shard in shards}
    labels = {"": -1} | {name: label for label, name in enumerate(shard_set.classes)}
    tags = {name: place for place, name in enumerate(shard_set.tags)}
    parts: dict[str, TrackTable] = {}
    with open_table(shard_set.path(TRACKS), TRACK_COLUMNS) as table:
        for name, rows in itertools.groupby(table, key=itemgetter(_SHARD)):
            if name in parts:
                raise ValueError(f"its rows on {name} are not together")
            if name in wanted:
                parts[name] = _part(wanted[name], list(rows), labels, tags)
        for name in wanted.keys() - parts.keys():
            raise ValueError(f"it has no row on {name}")
    found = [parts[shard.file] for shard in shards]
    return TrackTable(
        labels=np.concatenate([part.labels for part in found]),
        tags=np.concatenate([part.tags for part in found]),
        samples=np.concatenate([part.samples for part in found]),
        track_ids=[track_id for part in found for track_id in part.track_ids],
        groups=[group for part in found for group in part.groups],
    )


def _part(
    shard: Shard, rows: list[list[str]], label_of: dict[str, int], place_of: dict[str, int]
) -> TrackTable:
    """Return what the rows on one shard say. Raises `ValueError` if they do not fit its manifest entry."""
    if len(rows) != shard.tracks:
        raise ValueError(f"it has {len(rows)} rows on {shard.file}, the manifest says {shard.tracks} tracks")
    unknown = {row[_CLASS] for row in rows} - label_of.keys()
    if unknown:
        raise ValueError(
            f"it says {min(unknown)!r} in {shard.file}, which is none of the classes of the manifest"
        )
    labels = np.array([label_of[row[_CLASS]] for row in rows], dtype=np.int64)
    if ((labels >= 0) != shard.labelled).any():
        found, stated = ("no class", "all") if shard.labelled else ("a class", "none")
        raise ValueError(
            f"it has tracks with {found} in {shard.file}, the manifest says that {stated} have one"
        )
    return TrackTable(
        labels=labels,
        tags=_tag_matrix(shard, rows, place_of),
        samples=np.array([int(row[_SAMPLES]) for row in rows], dtype=np.int64),
        track_ids=[row[_TRACK_ID] for row in rows],
        groups=[sys.intern(row[_GROUP]) for row in rows],
    )


def _tag_matrix(shard: Shard, rows: list[list[str]], place_of: dict[str, int]) -> NDArray[np.uint8]:
    matrix = np.zeros((len(rows), len(place_of)), np.uint8)
    for number, row in enumerate(rows):
        for tag in tags_in_cell(row[_TAGS]):
            if tag not in place_of:
                raise ValueError(
                    f"it says {tag!r} in {shard.file}, which is none of the tags of the manifest"
                )
            matrix[number, place_of[tag]] = 1
    return matrix
