"""Random numbers of a batch. They depend on its place in the epoch, so that no process needs another's."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 32
"""Neighboring places of the global batch that share a random generator and are partners of each other."""


def blocks(count: int) -> list[slice]:
    """Return how a batch of `count` samples falls into blocks of `BLOCK`; the last one takes the rest.

    count = 80    |------ 32 ------|---------- 48 ----------|
    """
    edges = [BLOCK * number for number in range(max(1, count // BLOCK))]
    return [slice(begin, end) for begin, end in zip(edges, [*edges[1:], count], strict=True)]


class RandomNumbers:
    """Random numbers for `count` samples whose places in the epoch begin at `first`.

    Each block has a generator of its own, seeded by (seed, epoch, place of its first sample). So a whole
    block has the same numbers in every process and in a batch of any size.
    """

    def __init__(self, seed: int, epoch: int, first: int, count: int) -> None:
        self.count = count
        self._blocks = [
            (block, np.random.default_rng([seed, epoch, first + block.start])) for block in blocks(count)
        ]

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """Draw from [low, high), float64 [count, *shape]."""
        return low + (high - low) * self._each(lambda rng, n: rng.random((n, *shape)))

    def bernoulli(self, p: float) -> Array:
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

        The partners of a block form a random cycle: each other sample is as likely, and each is taken once.
        A sample that is alone in its batch is its own partner.
        """
        found = np.empty(self.count, dtype=np.int64)
        for block, rng in self._blocks:
            order = block.start + rng.permutation(block.stop - block.start)
            found[order] = np.roll(order, 1)
        return found

    def bands(self, extent: int, max_fraction: float, number: int = 1) -> tuple[Array, Array]:
        """Draw begin and end of bands of 1 to `max_fraction` * `extent` values, [count, number] each."""
        width = np.floor(self.uniform(1, max(1, int(max_fraction * extent)) + 1, number))
        begin = np.floor(self.uniform(0, 1, number) * (extent - width + 1))
        return begin, begin + width

    def _each(self, draw: Callable[[np.random.Generator, int], Array]) -> Array:
        return np.concatenate([draw(rng, block.stop - block.start) for block, rng in self._blocks])
