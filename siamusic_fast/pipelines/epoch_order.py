"""The order of the tracks in an epoch: a random permutation that takes no memory, whatever their number."""

from functools import lru_cache

import numpy as np

from siamusic_fast.pipelines.random_numbers import Array

_ROUNDS = 8
"""Rounds of the Feistel network."""


def permuted(places: Array, size: int, *key: int) -> Array:
    """Return the values at `places` of a random permutation of 0, 1, ... `size` - 1, which `key` seeds.

    A Feistel network permutes all numbers of an even number of bits. A value that is not below `size` is
    permuted again until it is (cycle walking). So the permutation as a whole is never in memory.
    """
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def permute(values: Array) -> Array:
        left, right = values >> half_bits, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        return (left << half_bits) | right

    found = permute(np.asarray(places, dtype=np.uint64))
    while (beyond := found >= size).any():
        found[beyond] = permute(found[beyond])
    return found.astype(np.int64)


def _mixed(values: Array) -> Array:
    """Return `values` with every bit spread over all others: the finalizer of MurmurHash3."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: Array = values ^ (values >> np.uint64(33))
    return mixed


class EpochOrder:
    """Which track stands at which place of an epoch.

    `counts` are the numbers of tracks of the shards. Every epoch is a new permutation of all tracks. With
    `window`, the shards are permuted, and then the tracks of each `window` shards among themselves, so that a
    reader stays for a while with a few shards. Without `shuffle`, tracks keep their order.
    """

    def __init__(self, counts: Array, *, seed: int, shuffle: bool = True, window: int | None = None) -> None:
        self.size = int(counts.sum())
        self._counts, self._seed, self._shuffle, self._window = counts, seed, shuffle, window
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._ordered = lru_cache(2)(self._shard_order)
        self._shards_of = lru_cache(4)(self._windows)

    def tracks(self, epoch: int, places: Array) -> Array:
        """Return the tracks at `places`, int64: numbers in the order of the shards."""
        if not self._shuffle:
            return np.asarray(places, dtype=np.int64)
        if self._window is None or self._window >= len(self._counts):
            return permuted(places, self.size, self._seed, epoch)
        return self._within_windows(epoch, np.asarray(places), self._window)

    def shards(self, epoch: int, first: int, last: int) -> tuple[int, ...]:
        """Return the shards of the windows that places from `first` to `last` are in, and of the next one.

        Shards without tracks are left out. After the last window of an epoch, the next one is the first of
        the epoch after it. Without `shuffle`, each shard is a window. As long as the windows are the same, so
        is the tuple.
        """
        window = self._window if self._shuffle else 1
        if window is None or window >= len(self._counts):
            return self._shards_of(0, 0, 0, len(self._counts))
        _, starts = self._ordered(epoch)
        ends = [first, min(last, self.size - 1)]
        begin, end = (np.searchsorted(starts[:-1:window], ends, side="right") - 1).tolist()
        return self._shards_of(epoch, begin, end, window)

    def _windows(self, epoch: int, begin: int, end: int, window: int) -> tuple[int, ...]:
        """Return the shards of the windows from `begin` to `end`, and of the next one."""
        shards, _ = self._ordered(epoch)
        found = shards[begin * window : (end + 2) * window].tolist()
        if window < len(shards) <= (end + 1) * window:
            found += self._ordered(epoch + 1)[0][:window].tolist()
        return tuple(shard for shard in dict.fromkeys(found) if self._counts[shard])

    def _shard_order(self, epoch: int) -> tuple[Array, Array]:
        """Return the shards in the order of their windows, and the place at which each starts or would."""
        shards = np.arange(len(self._counts))
        if self._shuffle and self._window:
            shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._counts))
        return shards, np.concatenate([[0], np.cumsum(self._counts[shards])])

    def _within_windows(self, epoch: int, places: Array, window: int) -> Array:
        shards, first = self._ordered(epoch)
        edges = np.append(first[:-1:window], self.size)
        windows = np.searchsorted(edges, places, side="right") - 1
        found = np.empty_like(places)
        for number in np.unique(windows).tolist():
            here, begin, end = windows == number, edges[number], edges[number + 1]
            key = (self._seed, epoch, number)
            found[here] = begin + permuted(places[here] - begin, int(end - begin), *key)
        shard = np.searchsorted(first, found, side="right") - 1
        return np.asarray(self._first[shards[shard]] + found - first[shard], dtype=np.int64)
