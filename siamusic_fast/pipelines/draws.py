"""Random numbers of a batch, keyed by where in the epoch it lies, so that no process needs another's."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Place = tuple[int, int]
"""An epoch and a batch in it, both from 0."""

BLOCK = 32
"""Neighboring places of the global batch that draw together and find their mixing partners in one another."""
_ROUNDS = 8
"""Rounds of the Feistel network."""


def blocks(count: int) -> list[slice]:
    """Return how a batch of `count` samples falls into blocks of `BLOCK`; the last one takes the rest.

    count = 80    |------ 32 ------|---------- 48 ----------|
    """
    edges = [BLOCK * number for number in range(max(1, count // BLOCK))]
    return [slice(begin, end) for begin, end in zip(edges, [*edges[1:], count], strict=True)]


class Draws:
    """Random numbers for `count` samples whose places in the epoch begin at `first`.

    Each block has a generator of its own, keyed by (seed, epoch, place of its first sample). So whole blocks
    draw the same numbers whichever process asks, in whatever batch they are.
    """

    def __init__(self, seed: int, epoch: int, first: int, count: int) -> None:
        self.count = count
        self._parts = [
            (part, np.random.default_rng([seed, epoch, first + part.start])) for part in blocks(count)
        ]

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """Draw from [low, high), float64 [count, *shape]."""
        return low + (high - low) * self._each(lambda rng, n: rng.random((n, *shape)))

    def coin(self, p: float) -> Array:
        """Draw True with probability `p`, bool [count]."""
        return self.uniform(0, 1) < p

    def beta(self, alpha: float) -> Array:
        """Draw from Beta(alpha, alpha), float64 [count]."""
        return self._each(lambda rng, n: rng.beta(alpha, alpha, n))

    def integers(self, high: int) -> Array:
        """Draw from 0, 1, ... `high` - 1, int64 [count]."""
        return self._each(lambda rng, n: rng.integers(high, size=n))

    def partners(self) -> Array:
        """Return the index of another sample of the same block for every sample, int64 [count].

        Each other sample is as likely, and each is taken once: a random cycle. A sample that is alone in its
        batch is its own partner.
        """
        found = np.empty(self.count, dtype=np.int64)
        for part, rng in self._parts:
            order = part.start + rng.permutation(part.stop - part.start)
            found[order] = np.roll(order, 1)
        return found

    def bands(self, extent: int, max_part: float, number: int = 1) -> tuple[Array, Array]:
        """Draw begin and end of `number` bands of 1 to `max_part` * `extent` values, [count, number] each."""
        width = np.floor(self.uniform(1, max(1, int(max_part * extent)) + 1, number))
        begin = np.floor(self.uniform(0, 1, number) * (extent - width + 1))
        return begin, begin + width

    def _each(self, draw: Callable[[np.random.Generator, int], Array]) -> Array:
        return np.concatenate([draw(rng, part.stop - part.start) for part, rng in self._parts])


def permuted(places: Array, size: int, *key: int) -> Array:
    """Return where the random permutation of 0, 1, ... `size` - 1 that belongs to `key` sends `places`.

    A Feistel network permutes the numbers of an even number of bits; what lands beyond `size` is sent on
    until it does not (cycle walking). So nothing of the size of the permutation is kept in memory.
    """
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def sent(values: Array) -> Array:
        left, right = values >> half_bits, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        return (left << half_bits) | right

    found = sent(np.asarray(places, dtype=np.uint64))
    while (beyond := found >= size).any():
        found[beyond] = sent(found[beyond])
    return found.astype(np.int64)


def _mixed(values: Array) -> Array:
    """Return `values` with every bit spread over all others: the finalizer of MurmurHash3."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: Array = values ^ (values >> np.uint64(33))
    return mixed


class Order:
    """Which track stands at which place of an epoch.

    `counts` are the tracks of each shard. All tracks are permuted anew for every epoch; with `window`, the
    shards are, and then the tracks of each `window` of them among themselves, so that a reader stays for a
    while with a few shards. Without `shuffle`, tracks keep their order.
    """

    def __init__(self, counts: Array, *, seed: int, shuffle: bool = True, window: int | None = None) -> None:
        self.size = int(counts.sum())
        self._counts, self._seed, self._shuffle, self._window = counts, seed, shuffle, window
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def tracks(self, epoch: int, places: Array) -> Array:
        """Return the tracks at `places`, int64: numbers in the order of the shards."""
        if not self._shuffle:
            return np.asarray(places, dtype=np.int64)
        if self._window is None or self._window >= len(self._counts):
            return permuted(places, self.size, self._seed, epoch)
        return self._within_windows(epoch, np.asarray(places), self._window)

    def _within_windows(self, epoch: int, places: Array, window: int) -> Array:
        shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._counts))
        first = np.concatenate([[0], np.cumsum(self._counts[shards])])
        edges = np.append(first[:-1:window], self.size)
        windows = np.searchsorted(edges, places, side="right") - 1
        found = np.empty_like(places)
        for number in np.unique(windows).tolist():
            here, begin, end = windows == number, edges[number], edges[number + 1]
            key = (self._seed, epoch, number)
            found[here] = begin + permuted(places[here] - begin, int(end - begin), *key)
        shard = np.searchsorted(first, found, side="right") - 1
        return np.asarray(self._first[shards[shard]] + found - first[shard], dtype=np.int64)
