"""The part of tracks.csv that loading and scoring need, of a million tracks in seconds."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.shards.manifest import Shard, ShardSet, check_tracks, damaged
from siamusic_fast.shards.tables import TRACK_COLUMNS, TRACKS, open_text

_TRACK_ID, _CLASS, _SAMPLES, _SHARD = map(TRACK_COLUMNS.index, ("track_id", "class", "samples", "shard"))


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """What tracks.csv says of the samples of some shards, in their order."""

    labels: NDArray[np.int64]
    """[samples]; the place of the class of each in `ShardSet.classes`, -1 for none."""
    samples: NDArray[np.int64]
    """[samples]; the length of the audio of each, at the sample rate of the shard set."""
    track_ids: list[str]
    """The track that each is, or is a segment of."""


def read_track_table(shard_set: ShardSet, shards: Sequence[Shard]) -> TrackTable:
    """Return what tracks.csv says of the samples of `shards`, in the order of `shards`.

    Raises `DataError` if tracks.csv has another SHA-256 than the manifest says, if it has another number of
    rows on a shard, a class that the manifest does not have, or a class in a shard of tracks without classes
    and the other way round.
    """
    check_tracks(shard_set)
    parts = _read_parts(shard_set, {shard.file: shard for shard in shards})
    tables = [parts[shard.file] for shard in shards]
    return TrackTable(
        labels=np.concatenate([table.labels for table in tables]),
        samples=np.concatenate([table.samples for table in tables]),
        track_ids=[track_id for table in tables for track_id in table.track_ids],
    )


def _read_parts(shard_set: ShardSet, shards: dict[str, Shard]) -> dict[str, TrackTable]:
    """Return the part of tracks.csv on each of `shards`, which are given by the names of their tars."""
    label_of = {"": -1} | {name: label for label, name in enumerate(shard_set.classes)}
    parts = {}
    path = shard_set.path(TRACKS)
    try:
        with open_text(path) as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != TRACK_COLUMNS:
                raise ValueError(f"its columns are not {', '.join(TRACK_COLUMNS)}")
            for name, rows in itertools.groupby(reader, key=itemgetter(_SHARD)):
                if name in parts:
                    raise ValueError(f"its rows on {name} are not together")
                if name in shards:
                    parts[name] = _part(shards[name], list(rows), label_of)
    except OSError as error:
        raise damaged(path, error.strerror or error) from None
    except (ValueError, OverflowError, IndexError, csv.Error) as error:
        raise damaged(path, error) from None
    for name in shards:
        if name not in parts:
            raise damaged(path, f"it has no row on {name}")
    return parts


def _part(shard: Shard, rows: list[list[str]], label_of: dict[str, int]) -> TrackTable:
    """Return what the rows on one shard say, or raise `ValueError` if its description does not fit them."""
    if len(rows) != shard.tracks:
        raise ValueError(f"it has {len(rows)} rows on {shard.file}, the manifest says {shard.tracks} tracks")
    unknown = {row[_CLASS] for row in rows} - label_of.keys()
    if unknown:
        raise ValueError(
            f"it says {min(unknown)!r} in {shard.file}, which is none of the classes of the manifest"
        )
    labels = np.array([label_of[row[_CLASS]] for row in rows], dtype=np.int64)
    if ((labels >= 0) != shard.labelled).any():
        found, said = ("no class", "all") if shard.labelled else ("a class", "none")
        raise ValueError(
            f"it has tracks with {found} in {shard.file}, the manifest says that {said} have one"
        )
    return TrackTable(
        labels=labels,
        samples=np.array([int(row[_SAMPLES]) for row in rows], dtype=np.int64),
        track_ids=[row[_TRACK_ID] for row in rows],
    )
