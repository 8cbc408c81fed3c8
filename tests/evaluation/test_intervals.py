import numpy as np
import pytest
import scipy.stats

from siamusic_fast.evaluation.intervals import (
    Difference,
    group_weights,
    mean_interval,
    paired_difference,
)


def test_whole_groups_are_drawn_and_an_unknown_one_is_a_group_of_its_own() -> None:
    groups = ["ann", "", "ben", "ann", "", "ann"]  # 4 groups, of 3, 1, 1 and 1 items
    weights = group_weights(groups, resamples=4_000, seed=1)
    assert weights.shape == (4_000, 6)
    ann, first, ben, second = weights[:, 0], weights[:, 1], weights[:, 2], weights[:, 4]
    assert (weights[:, [3, 5]] == ann[:, None]).all()
    assert ((ann + first + ben + second) == 4).all()  # as many groups as there are
    assert (first != second).any()
    # A group is drawn binomial(4, 1/4) times: mean 1, variance 3/4.
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.05)
    assert weights.var(axis=0) == pytest.approx(np.full(6, 0.75), abs=0.08)


def test_a_difference_in_every_item_has_an_interval_of_no_width() -> None:
    found = paired_difference([0.75, 0.5, 1.0] * 5, [0.5, 0.25, 0.75] * 5, ["", "a", ""] * 5)
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert (found.groups, found.shown) == (11, True)


@pytest.mark.parametrize("groups", [["a"] * 12, list("abcdefghi") + ["a"] * 3])
def test_nothing_is_shown_by_fewer_than_ten_groups(groups: list[str]) -> None:
    found = paired_difference([0.75] * 12, [0.5] * 12, groups)
    assert (found.low, found.high, found.shown) == (0.25, 0.25, False)
    count = len(set(groups))
    words = f"+25.0 points (+25.0 to +25.0): too few groups ({count}) to show a difference"
    assert found.words == words


def test_two_groups_worked_by_hand() -> None:
    # Group a: one item, we are right and they are wrong. Group b: three items, all equal. Drawn are aa with
    # probability 1/4 (difference 1), ab with 1/2 (1/4) and bb with 1/4 (0): quantiles at 2.5% and 97.5% are
    # 0 and 1. The difference of the items as they are is 1/4.
    found = paired_difference([1, 1, 0, 1], [0, 1, 0, 1], ["a", "b", "b", "b"])
    assert found == Difference(difference=0.25, low=0.0, high=1.0, groups=2)


def test_an_interval_that_covers_0_shows_no_difference() -> None:
    found = Difference(difference=0.25, low=0.0, high=1.0, groups=10)
    assert not found.shown
    assert found.words == "+25.0 points (+0.0 to +100.0): no difference shown"


def test_without_groups_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(60) < 0.7, rng.random(60) < 0.5
    found = paired_difference(ours, theirs, [""] * 60, resamples=20_000)
    theirs_of_scipy = scipy.stats.bootstrap(
        (ours.astype(float), theirs.astype(float)),
        lambda ours, theirs, axis: ours.mean(axis=axis) - theirs.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(
        (theirs_of_scipy.low, theirs_of_scipy.high), abs=1 / 60 + 1e-9
    )


def test_items_of_one_group_say_less_than_independent_ones() -> None:
    scores = np.repeat([0.0, 1.0] * 10, 50)  # 20 artists, whose 50 tracks each are all right or all wrong
    alone = mean_interval(scores, [""] * 1_000)
    by_artist = mean_interval(scores, [str(place // 50) for place in range(1_000)])
    # Standard errors are 0.5 / sqrt(1000) and 0.5 / sqrt(20), and the intervals 1.96 of them on each side.
    assert alone == pytest.approx((0.5 - 1.96 * 0.0158, 0.5 + 1.96 * 0.0158), abs=0.005)
    assert by_artist == pytest.approx((0.5 - 1.96 * 0.1118, 0.5 + 1.96 * 0.1118), abs=0.04)


def test_the_mean_over_drawn_items_is_that_by_their_weights() -> None:
    scores, groups = np.array([0.3, 0.9, 0.1, 0.4]), ["a", "", "a", ""]
    weights = group_weights(groups, resamples=500, seed=3)
    by_weights = np.quantile((weights * scores).sum(axis=1) / weights.sum(axis=1), (0.025, 0.975))
    assert mean_interval(scores, groups, resamples=500, seed=3) == pytest.approx(tuple(by_weights))


def test_a_loss_can_be_shown_too() -> None:
    found = Difference(difference=-0.2, low=-0.3, high=-0.1, groups=10)
    assert (found.shown, found.words) == (True, "-20.0 points (-30.0 to -10.0)")
