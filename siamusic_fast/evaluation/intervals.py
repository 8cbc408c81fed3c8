"""Intervals of scores and of differences between them, by drawing whole groups of items anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

RESAMPLES = 1_000
"""Bootstrap samples behind an interval."""
MIN_GROUPS = 10
"""Groups that it takes to show a difference: intervals from few are too narrow (Cameron et al. 2008)."""
NOT_SHOWN = "no difference shown"
"""What is said of a difference whose interval covers 0."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of our scores minus that of theirs on the same items, with its 95% interval."""

    difference: float
    low: float
    high: float
    groups: int
    """Number of groups that the interval is resampled by."""

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out, and is that of at least `MIN_GROUPS` groups."""
        return self.groups >= MIN_GROUPS and (self.low > 0 or self.high < 0)

    @property
    def words(self) -> str:
        """The difference and its interval in points of a percent, and whether it is shown at all."""
        figures = f"{100 * self.difference:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        if self.groups < MIN_GROUPS:
            return f"{figures}: too few groups ({self.groups}) to show a difference"
        return figures if self.shown else f"{figures}: {NOT_SHOWN}"


def group_numbers(groups: Sequence[str]) -> Counts:
    """Return the number of the group of each item, [n], from 0 in the order in which groups are met.

    An item whose group is unknown, "", is a group of its own.
    """
    numbers: dict[object, int] = {}
    found = [numbers.setdefault(name or place, len(numbers)) for place, name in enumerate(groups)]
    return np.array(found, dtype=np.int64)


def count_groups(groups: Sequence[str]) -> int:
    """Return the number of groups; each item whose group is unknown, "", counts as one."""
    return int(group_numbers(groups).max()) + 1


def group_draws(groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Counts]:
    """Yield the rows of `group_weights` one by one, for which there is memory however many they are."""
    numbers = group_numbers(groups)
    count = int(numbers.max()) + 1
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(count, size=count), minlength=count)[numbers]


def group_weights(groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Counts:
    """Return how often each item occurs in each bootstrap sample, int64 [resamples, n].

    `groups` names the group of each of n > 0 items, such as the artist of a track; "" is a group of its own.
    As many groups as there are are drawn with replacement, and each brings all its items: items of one group
    are not independent, groups are (the cluster bootstrap, Davison & Hinkley 1997, section 3.8).
    """
    return np.stack(list(group_draws(groups, resamples=resamples, seed=seed)))


def middle(values: npt.ArrayLike) -> tuple[float, float]:
    """Return the quantiles at 2.5% and 97.5% of bootstrapped `values`, Efron's percentile interval."""
    low, high = np.quantile(np.asarray(values, np.float64), (0.025, 0.975))
    return float(low), float(high)


def resampled_means(
    scores: npt.ArrayLike, groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Return the mean of `scores` [n], one of each item, in each bootstrap sample of `groups`."""
    numbers = group_numbers(groups)
    sums, sizes = np.bincount(numbers, np.asarray(scores, np.float64)), np.bincount(numbers)
    rng, count = np.random.default_rng(seed), len(sizes)
    drawn = (rng.integers(count, size=count) for _ in range(resamples))  # as `group_draws` does
    return np.array([sums[of_sample].sum() / sizes[of_sample].sum() for of_sample in drawn])


def mean_interval(
    scores: npt.ArrayLike, groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% interval of the mean of `scores` [n], one of each item, resampled by `groups`."""
    return middle(resampled_means(scores, groups, resamples=resamples, seed=seed))


def paired_difference(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the mean of `ours` minus that of `theirs`, scores [n] of the same items, with an interval.

    A score is, for example, 1 for a track that is classified rightly and 0 for another, or the average
    precision of a query. Each bootstrap sample has the same items on both sides, so that what makes an item
    difficult for both cancels out. `groups` are those of `group_weights`.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    low, high = mean_interval(differences, groups, resamples=resamples, seed=seed)
    return Difference(difference=float(differences.mean()), low=low, high=high, groups=count_groups(groups))
