"""Which track goes into which shard: a function of the tracks and two settings, and of nothing else."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from siamusic_fast.audio.corpus import SPLITS, Track


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to be written."""

    stem: str
    """File name without its ending."""
    split: str
    labelled: bool
    """Whether its tracks have classes."""
    tracks: tuple[Track, ...]
    """Its tracks, in the order of the shard."""


def plan_shards(
    tracks: Iterable[Track],
    *,
    tracks_per_shard: int,
    seed: int,
    block: Callable[[str], str] | None = None,
) -> tuple[ShardPlan, ...]:
    """Assign `tracks` to shards, shuffled within each split. Labelled and unlabelled tracks share no shard.

    The order is that of a hash of seed and key: the same on every machine, whatever the order of `tracks`.
    Tracks whose paths `block` puts into one block stay together, in an order of their own.
    The shards of a group differ by one track at most, and none has more than `tracks_per_shard`.
    """
    groups: dict[tuple[int, bool], list[Track]] = defaultdict(list)
    for track in tracks:
        groups[SPLITS.index(track.split), track.genre == ""].append(track)
    plans = []
    for (split, unlabelled), members in sorted(groups.items()):
        members.sort(
            key=lambda track: (_hash(seed, block(track.path)) if block else b"", _hash(seed, track.key))
        )
        stem = f"{SPLITS[split]}-unlabelled" if unlabelled else SPLITS[split]
        count = -(-len(members) // tracks_per_shard)
        edges = [len(members) * shard // count for shard in range(count + 1)]
        plans += [
            ShardPlan(
                stem=f"{stem}-{shard:06d}",
                split=SPLITS[split],
                labelled=not unlabelled,
                tracks=tuple(members[edges[shard] : edges[shard + 1]]),
            )
            for shard in range(count)
        ]
    return tuple(plans)


def _hash(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()
