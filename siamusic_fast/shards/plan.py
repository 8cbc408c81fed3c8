"""Which track goes into which shard: a function of the tracks and two settings, and of nothing else."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
    members = list(tracks)
    group = np.fromiter((2 * SPLITS.index(one.split) + (one.genre == "") for one in members), np.int8)
    hashes = _hashes(seed, (one.key for one in members))
    if block:
        hashes = np.hstack([_hashes(seed, (block(one.path) for one in members)), hashes])
    order = np.lexsort((*hashes.T[::-1], group))
    first = np.searchsorted(group[order], np.arange(2 * len(SPLITS) + 1)).tolist()
    plans = []
    for kind, (begin, end) in enumerate(pairwise(first)):
        split, labelled = SPLITS[kind // 2], kind % 2 == 0
        stem = split if labelled else f"{split}-unlabelled"
        count = -(-(end - begin) // tracks_per_shard)
        edges = [begin + (end - begin) * shard // count for shard in range(count + 1)] if count else []
        plans += [
            ShardPlan(
                stem=f"{stem}-{shard:06d}",
                split=split,
                labelled=labelled,
                tracks=tuple(members[place] for place in order[start:stop].tolist()),
            )
            for shard, (start, stop) in enumerate(pairwise(edges))
        ]
    return tuple(plans)


def _hashes(seed: int, names: Iterable[str]) -> NDArray[np.uint64]:
    """Return a hash of each of `names`, [names, 2]: its first and its last eight bytes as numbers."""
    found = bytearray()
    for name in names:
        found += hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, 2)
