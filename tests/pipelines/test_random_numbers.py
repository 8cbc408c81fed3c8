"""What is drawn, in numpy alone: as often, as evenly and as independently as documented.

Bounds leave a chance of 1 in 100,000 or less; the seeds are fixed.
"""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.epoch_order import EpochOrder, permuted
from siamusic_fast.pipelines.image_augmentations import (
    CutMix,
    CutOut,
    FrequencyMask,
    GridDistortion,
    Mask,
    Mixup,
    RandomResizedCrop,
    Tilt,
    TimeMask,
)
from siamusic_fast.pipelines.random_numbers import BLOCK, RandomNumbers, blocks
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, parse_recipe
from siamusic_fast.pipelines.wave_augmentations import Gain, Noise, PitchShift, TimeStretch, WaveMixup
from tests.pipelines.helpers import Array

MEL = MelConfig()
COUNT = 20_000
Distribution = Callable[[Array], Array]


def uniform(low: float, high: float) -> Distribution:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def whole(first: int, last: int) -> Distribution:
    """All whole numbers from `first` to `last` are as likely."""
    return lambda x: np.clip((np.floor(x) - first + 1) / (last - first + 1), 0, 1)


def arcsine(x: Array) -> Array:
    """Beta(1/2, 1/2)."""
    return np.asarray(2 / np.pi * np.arcsin(np.sqrt(np.clip(x, 0, 1))))


BETA: dict[float, Distribution] = {1.0: uniform(0, 1), 0.5: arcsine}


def assert_distributed(samples: Array, distribution: Distribution) -> None:
    """Compare how `samples` are distributed, as Kolmogorov and Smirnov do."""
    values, counts = np.unique(samples, return_counts=True)
    share, wanted = np.cumsum(counts) / samples.size, distribution(values)
    # From the left as well, but where values repeat: those are of a distribution with steps.
    left = np.where(counts == 1, share - 1 / samples.size, share)
    assert max(abs(share - wanted).max(), abs(left - wanted).max()) < np.sqrt(
        np.log(2e5) / (2 * samples.size)
    )


def drawn(step: Any, mel: MelConfig = MEL, seed: int = 0) -> Any:
    """Return what `step` draws for `COUNT` samples."""
    return step.draw(RandomNumbers(seed, 0, 0, COUNT), mel)


def sizes_and_begins(boxes: Array) -> tuple[Array, Array]:
    """Return height and width, and top and left, of `boxes`, [any, 2] each."""
    flat = boxes.reshape(-1, 4)
    return flat[:, 1::2] - flat[:, ::2], flat[:, ::2]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64, 80, 100, 1000])
def test_blocks_cover_a_batch_and_are_whole_but_for_the_last(count: int) -> None:
    parts = blocks(count)
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start == BLOCK for part in parts[:-1])
    assert count < BLOCK or parts[-1].stop - parts[-1].start < 2 * BLOCK


def test_whole_blocks_draw_the_same_whichever_batch_they_are_in() -> None:
    def numbers(first: int, count: int) -> Array:
        rng = RandomNumbers(7, 3, first, count)
        partners = rng.partners() + first
        return np.stack([rng.uniform(0, 1), partners, rng.beta(0.5), rng.integers(9), rng.bernoulli(0.5)])

    whole_batch = numbers(0, 128)
    for size in (32, 64):
        parts = [numbers(first, size) for first in range(0, 128, size)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole_batch)
    others = [RandomNumbers(7, 4, 0, 128), RandomNumbers(8, 3, 0, 128), RandomNumbers(7, 3, 128, 128)]
    assert all((rng.uniform(0, 1) != whole_batch[0]).all() for rng in others)


@pytest.mark.parametrize("count", [2, 3, 31, 33, 64, 97])
def test_partners_are_one_cycle_through_each_block(count: int) -> None:
    for seed in range(20):
        partners = RandomNumbers(seed, 0, 0, count).partners()
        for part in blocks(count):
            visited = [part.start]
            while (following := int(partners[visited[-1]])) != part.start:
                visited.append(following)
            assert sorted(visited) == list(range(part.start, part.stop))


def test_every_other_sample_of_a_block_is_as_likely_a_partner() -> None:
    partners = drawn(Mixup()).partner
    assert_distributed((partners - np.arange(COUNT)) % BLOCK, whole(1, BLOCK - 1))
    assert RandomNumbers(0, 0, 0, 1).partners().tolist() == [0]


def test_bands_lie_within_the_image_whatever_their_part() -> None:
    for extent, part in ((1, 1.0), (5, 0.01), (48, 1.0), (48, 27 / 80), (431, 100 / 431)):
        begin, end = RandomNumbers(0, 0, 0, 2000).bands(extent, part, 2)
        assert begin.min() == 0
        assert end.max() == extent
        assert set(np.unique(end - begin)) == set(range(1, max(1, int(part * extent)) + 1))


@given(st.integers(1, 700), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_permuted_numbers_are_the_same_numbers(size: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(size), size, seed, epoch)
    np.testing.assert_array_equal(np.sort(found), np.arange(size))
    picked = np.arange(size)[:: max(1, size // 7)]
    np.testing.assert_array_equal(permuted(picked, size, seed, epoch), found[picked])


@pytest.mark.parametrize("size", [100_003, 2**20, 2**20 + 1, 100_000_000, 2**40])
def test_places_of_a_long_epoch_are_distinct_even_and_take_no_memory(size: int) -> None:
    places = np.unique(np.random.default_rng(0).integers(size, size=20_000))
    tracemalloc.start()
    found = permuted(places, size, 1, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(found)) == len(places)
    assert_distributed(found / size, uniform(0, 1))
    assert abs(np.corrcoef(found, places)[0, 1]) < 4.5 / np.sqrt(len(places))
    assert peak < 10e6  # in bytes; the numbers of 100 million tracks are 800 MB


def test_over_epochs_every_track_stands_anywhere_and_beside_any_other() -> None:
    size, epochs = 23, 1500
    orders = np.stack([permuted(np.arange(size), size, 5, epoch) for epoch in range(epochs)])
    pairs = size * orders[:, :-1] + orders[:, 1:]
    for table, cells in (
        (np.stack([np.bincount(column, minlength=size) for column in orders.T]), size**2),
        (np.bincount(pairs.ravel(), minlength=size**2)[np.flatnonzero(~np.eye(size, dtype=bool))], None),
    ):
        wanted = table.mean()
        chi_square, freedom = float(((table - wanted) ** 2 / wanted).sum()), cells or table.size
        assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom) + 2 * size


@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("counts", [[10, 10, 3], [1], [1] * 7, [5, 1, 8, 2, 2, 9, 4]])
def test_an_epoch_has_every_track_once_and_stays_with_the_shards_of_a_window(
    counts: list[int], window: int | None
) -> None:
    size, shard = sum(counts), np.repeat(np.arange(len(counts)), counts)
    order = EpochOrder(np.array(counts), seed=3, window=window)
    epochs = [order.tracks(epoch, np.arange(size)) for epoch in range(4)]
    for tracks in epochs:
        np.testing.assert_array_equal(np.sort(tracks), np.arange(size))
        if window:
            runs, left = shard[tracks], size
            while left:
                here = set(runs[:1])
                for place in range(len(runs)):
                    if len(here | {runs[place]}) > window:
                        break
                    here.add(runs[place])
                took = sum(counts[number] for number in here)
                assert set(runs[:took]) == here  # all of these shards, before any of another
                runs, left = runs[took:], left - took
    assert size == 1 or len({tuple(tracks) for tracks in epochs}) > 1
    some = order.tracks(2, np.array([size - 1, 0]))
    assert some.tolist() == [epochs[2][-1], epochs[2][0]]


def test_without_shuffling_tracks_keep_their_order() -> None:
    order = EpochOrder(np.array([3, 4]), seed=0, shuffle=False, window=1)
    assert order.tracks(5, np.arange(2, 6)).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("p", [None, 0.3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_samples_are_changed_each_by_itself_with_the_probability_given(name: str, p: float | None) -> None:
    (step,) = parse_recipe(name if p is None else f"{name}(p={p})")
    on, change = np.zeros(COUNT, dtype=bool), drawn(step)
    numbers = {**vars(change), **getattr(change, "values", {})}
    for value in numbers.values():  # those of a sample that is not changed are neutral
        if isinstance(value, np.ndarray) and value.size:  # the plan sets `starts`, not the augmentation
            neutral = {"rate": 1, "grid_pitch": 128, "factor": 1 if name == "gain" else 0}
            on |= (value != neutral.get(_name(numbers, value), 0)).reshape(COUNT, -1).any(axis=1) & (
                _name(numbers, value) not in ("partner", "offset", "mels", "frames")
                or name in ("hflip", "vflip")
            )
    expected = step.p * {"pitch": 1 - 1 / 60}.get(name, 1)  # the smallest of shifts is none
    slack = {"pitch": 0.02, "cutmix": 0.03}.get(name, 0)  # boxes may have no area
    assert abs(on.mean() - expected) < 4.5 * np.sqrt(step.p * (1 - step.p) / COUNT) + slack
    if 0 < step.p < 1:
        assert abs(np.corrcoef(on[1:], on[:-1])[0, 1]) < 4.5 / np.sqrt(COUNT)


def _name(numbers: dict[str, Any], value: Array) -> str:
    return next(name for name, other in numbers.items() if other is value)


def test_a_probability_of_zero_changes_nothing() -> None:
    assert (drawn(TimeStretch(p=0)).rate == 1).all()
    assert (drawn(Gain(p=0)).values["factor"] == 1).all()
    assert (drawn(Noise(p=0)).factor == 0).all()
    assert not sizes_and_begins(drawn(CutMix(p=0)).boxes)[0].any()


@pytest.mark.parametrize(
    ("change", "values", "distribution"),
    [
        (TimeStretch(p=1), lambda c: c.rate, uniform(0.6, 1.5)),
        (Gain(p=1), lambda c: 20 * np.log10(c.values["factor"]), uniform(-6, 6)),
        (Noise(p=1), lambda c: -20 * np.log10(c.factor), uniform(10, 40)),
        (Noise(p=1), lambda c: c.offset, whole(0, 2**17 - 1)),
        (WaveMixup(p=1), lambda c: c.weight, BETA[1.0]),
        (WaveMixup(p=1, alpha=0.5), lambda c: c.weight, BETA[0.5]),
        (Mixup(p=1), lambda c: c.weight, BETA[1.0]),
        (Mixup(p=1, alpha=0.5), lambda c: c.weight, BETA[0.5]),
        (Mixup(p=1, max_share=0.4), lambda c: c.weight, uniform(0, 0.4)),
        (WaveMixup(p=1, max_share=0.4), lambda c: c.weight, uniform(0, 0.4)),
        (Tilt(p=1, max_rise=0.8), lambda c: c.values["line"][:, -1], uniform(-0.8, 0.8)),
        (FrequencyMask(p=1), lambda c: sizes_and_begins(c.boxes)[0][:, 0], whole(1, 16)),  # 27/80 of 48: 16.2
        (TimeMask(p=1), lambda c: sizes_and_begins(c.boxes)[0][:, 1], whole(1, 100)),
        (RandomResizedCrop(p=1), lambda c: np.diff(c.mels)[:, 0], uniform(0.6 * 48, 48)),
        (RandomResizedCrop(p=1), lambda c: np.diff(c.frames)[:, 0], uniform(0.6 * 431, 431)),
        (RandomResizedCrop(p=1), lambda c: c.mels[:, 0] / (48 - np.diff(c.mels)[:, 0]), uniform(0, 1)),
        (RandomResizedCrop(p=1), lambda c: c.frames[:, 0] / (431 - np.diff(c.frames)[:, 0]), uniform(0, 1)),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "p") else "",
)
def test_parameters_are_distributed_as_documented(
    change: Any, values: Callable[[Any], Array], distribution: Distribution
) -> None:
    assert_distributed(values(drawn(change)), distribution)


def test_pitches_are_even_in_semitones_to_the_nearest_of_their_grid() -> None:
    step = PitchShift(p=1)
    pitch = drawn(step).grid_pitch / 128
    np.testing.assert_array_equal(pitch * 128, np.rint(pitch * 128))
    assert pitch.max() <= step.max_pitch
    # What lies up to half a step above is rounded to it.
    assert_distributed(pitch, lambda k: uniform(-4, 4)(12 * np.log2(k + 1 / 256)))


def test_a_mask_is_one_band_of_mels_or_as_often_of_frames() -> None:
    sizes, begins = sizes_and_begins(drawn(Mask(p=1)).boxes)
    over_mels = sizes[:, 1] == 431
    assert (sizes[~over_mels, 0] == 48).all()
    assert abs(over_mels.mean() - 0.5) < 4.5 * np.sqrt(0.25 / COUNT)
    for axis, chosen, widest, extent in ((0, over_mels, 16, 48), (1, ~over_mels, 100, 431)):
        width, begin = sizes[chosen, axis], begins[chosen, axis]
        assert_distributed(width, whole(1, widest))
        # Given its width, a band begins at any of extent - width + 1 places: spread evenly, that is [0, 1).
        spread = np.random.default_rng(0).random(len(begin))
        assert_distributed((begin + spread) / (extent - width + 1), uniform(0, 1))


@pytest.mark.parametrize(("alpha", "share"), [*((alpha, 1.0) for alpha in BETA), (1.0, 0.4)])
def test_cutmix_boxes_have_the_areas_of_a_beta_distribution_and_lie_anywhere(
    alpha: float, share: float
) -> None:
    sizes, begins = sizes_and_begins(drawn(CutMix(p=1, alpha=alpha, max_share=share)).boxes)
    # A side of s pixels is floor(sqrt(share w) extent): P(side <= s) = P(share w < ((s + 1) / extent)^2).
    for axis, extent in enumerate((48, 431)):
        steps = BETA[alpha]((np.square((np.arange(extent + 1) + 1) / extent) / share).clip(0, 1))
        assert_distributed(sizes[:, axis], lambda s, steps=steps: steps[s.astype(int)])  # type: ignore[misc]
        assert_distributed(begins[:, axis] + sizes[:, axis] // 2, whole(0, extent - 1))
    ratio = sizes[:, 0] * 431 / 48 - sizes[:, 1]
    assert ratio.min() >= -431 / 48  # the proportions of the image, but for rounding
    assert ratio.max() <= 1
    centers = begins + sizes // 2
    table = np.stack([sizes[:, 1], *centers.T])
    assert abs(np.corrcoef(table) - np.eye(3)).max() < 4.5 / np.sqrt(COUNT)


def test_holes_of_cutout_are_squares_anywhere_and_independent_of_each_other() -> None:
    step = CutOut(p=1)
    boxes = drawn(step).boxes
    assert boxes.shape == (COUNT, 4, 4)
    sizes, _ = sizes_and_begins(boxes)
    assert (sizes == 16).all()
    centers = (boxes[..., ::2] + 8).reshape(COUNT, -1)
    for place, values in enumerate(centers.T):
        assert_distributed(values, whole(0, (47, 430)[place % 2]))
    assert abs(np.corrcoef(centers.T) - np.eye(8)).max() < 4.5 / np.sqrt(COUNT)


def test_cells_of_a_distorted_grid_fill_the_image_and_differ_within_the_limit() -> None:
    change = drawn(GridDistortion(p=1), MelConfig(n_mels=50))
    for edges, extent in ((change.mels, 50), (change.frames, 431)):
        assert (edges[:, 0] == 0).all()
        np.testing.assert_allclose(edges[:, -1], extent)
        assert edges.shape[1] == 6
    cells = np.diff(change.mels)  # of equal size before they are distorted
    ratios = cells.max(axis=1) / cells.min(axis=1)
    assert 1.5 < ratios.max() <= 1.3 / 0.7 + 1e-9


def test_a_tilt_is_a_line_about_the_middle_band() -> None:
    amount = drawn(Tilt(p=1)).values["line"][..., 0, 0].astype(np.float64)
    np.testing.assert_allclose(np.diff(amount, n=2), 0, atol=1e-6)
    np.testing.assert_allclose(amount.sum(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_drawn_for_views_and_steps_is_independent(seed: int) -> None:
    rng = RandomNumbers(seed, 0, 0, COUNT)  # a plan draws all steps of both views with one of these
    columns = []
    for _ in range(2):
        for text in ("wavemix", "pitch", "stretch", "gain", "noise", "cutmix", "mixup", "cutout", "hflip"):
            (step,) = parse_recipe(f"{text}(p=0.5)")
            change: Any = step.draw(rng, MEL)  # type: ignore[attr-defined]
            by_name = {
                "wavemix": "weight", "mixup": "weight", "pitch": "grid_pitch", "stretch": "rate",
                "gain": "factor", "noise": "factor", "hflip": "frames",
            }  # fmt: skip
            table = change.values["factor"] if text == "gain" else getattr(change, by_name.get(text, "boxes"))
            columns.append(table.reshape(COUNT, -1)[:, -1].astype(np.float64))
    correlations = np.corrcoef(np.stack(columns)) - np.eye(len(columns))
    assert abs(correlations).max() < 5 / np.sqrt(COUNT)
