"""What is drawn, over 20,000 samples: as often, as evenly and as independently as documented.

Bounds leave a chance of 1 in 100,000 or less; the seeds are fixed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import (
    Augmentation,
    CutMix,
    CutOut,
    Mask,
    Mixup,
    PitchShift,
    TimeStretch,
    WaveMixup,
)
from siamusic_fast.pipelines.extras import (
    FrequencyMask,
    Gain,
    GridDistortion,
    Noise,
    RandomResizedCrop,
    TimeMask,
)
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, parse_recipe
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.graphs import Array, distance, drawn, limit, traced

MEL = MelConfig()
SAMPLES = 20_000
Distribution = Callable[[Array], Array]


def uniform(low: float, high: float) -> Distribution:
    return lambda x: ((x - low) / (high - low)).clip(0, 1)


def whole(first: int, last: int) -> Distribution:
    """All whole numbers from `first` to `last` are as likely."""
    return lambda x: ((np.floor(x) - first + 1) / (last - first + 1)).clip(0, 1)


def arcsine(x: Array) -> Array:
    """Beta(1/2, 1/2)."""
    return np.asarray(2 / np.pi * np.arcsin(np.sqrt(np.clip(x, 0, 1))))


BETA: dict[float, Distribution] = {1.0: uniform(0, 1), 0.5: arcsine}


@pytest.mark.parametrize("p", [None, 0.3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_samples_are_changed_with_the_probability_given(name: str, p: float | None) -> None:
    (step,) = parse_recipe(name if p is None else f"{name}(p={p})")
    on = drawn(step, MelConfig(seconds=1.0))["on"]
    assert set(np.unique(on)) == {0, 1}
    assert abs(on.mean() - step.p) < 4.5 * np.sqrt(step.p * (1 - step.p) / SAMPLES)
    # Each by itself, not a batch as a whole: batches differ as 2,000 coins do.
    assert on.reshape(10, -1).mean(axis=1).std() < 3 * np.sqrt(step.p * (1 - step.p) / 2000)


@pytest.mark.parametrize(
    ("step", "name", "distribution"),
    [
        (TimeStretch(), "rate", uniform(0.6, 1.5)),
        (PitchShift(), "semitones", uniform(-4, 4)),
        (Gain(), "decibels", uniform(-6, 6)),
        (Noise(), "snr", uniform(10, 40)),
        (WaveMixup(), "weight", BETA[1.0]),
        (WaveMixup(alpha=0.5), "weight", BETA[0.5]),
        (Mixup(), "weight", BETA[1.0]),
        (Mixup(alpha=0.5), "weight", BETA[0.5]),
        (Mask(), "over_mels", whole(0, 1)),
        (Mask(), "mels", whole(1, 16)),  # 27/80 of 48 are 16.2
        (Mask(), "frames", whole(1, 100)),
        (FrequencyMask(), "widths", whole(1, 16)),
        (TimeMask(), "widths", whole(1, 100)),
        (RandomResizedCrop(), "height", uniform(0.6 * 48, 48)),
        (RandomResizedCrop(), "width", uniform(0.6 * 431, 431)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Augmentation) else "",
)
def test_parameters_are_distributed_as_documented(
    step: Augmentation, name: str, distribution: Distribution
) -> None:
    values = drawn(step, MEL)[name]
    assert distance(values.ravel(), distribution) < limit(SAMPLES)


@pytest.mark.parametrize("alpha", BETA)
def test_cutmix_boxes_have_the_areas_of_a_beta_distribution(alpha: float) -> None:
    # A side of s pixels is floor(sqrt(w) extent): P(side <= s) = P(w < ((s + 1) / extent)^2).
    shape = drawn(CutMix(alpha=alpha), MEL)["shape"].reshape(-1, 2)
    for extent, sides in zip((48, 431), shape.T, strict=True):
        steps = BETA[alpha](np.square((np.arange(extent + 1) + 1) / extent).clip(0, 1))
        assert distance(sides, lambda s, steps=steps: steps[s.astype(int)]) < limit(SAMPLES)  # type: ignore[misc]
    # Rounding down takes less than a row and a column off.
    areas = shape.prod(axis=1) / (48 * 431)
    lost = 1 / 48 + 1 / 431
    grid = np.linspace(0, 1, 200)
    share = np.searchsorted(np.sort(areas), grid, side="right") / len(areas)
    assert (share >= BETA[alpha](grid) - limit(SAMPLES)).all()
    assert (share <= BETA[alpha](grid + lost) + limit(SAMPLES)).all()
    ratio = shape[:, 0] * 431 / 48 - shape[:, 1]
    assert ratio.min() >= -431 / 48  # the proportions of the image, but for rounding
    assert ratio.max() <= 1


def test_cutmix_boxes_have_their_centres_anywhere() -> None:
    draws = drawn(CutMix(), MEL)
    centres = (draws["anchor"] + np.floor(draws["shape"] / 2)).reshape(-1, 2)
    for extent, values in zip((48, 431), centres.T, strict=True):
        assert distance(values, whole(0, extent - 1)) < limit(SAMPLES)
    areas = draws["shape"].prod(axis=-1).ravel()
    assert abs(np.corrcoef(np.stack([areas, *centres.T])) - np.eye(3)).max() < 4.5 / np.sqrt(SAMPLES)


def test_holes_of_cutout_have_their_centres_anywhere_and_independently() -> None:
    step = CutOut()
    centres = drawn(step, MEL)["anchors"].reshape(-1, 2 * step.holes) + step.size // 2
    for place, values in enumerate(centres.T):
        assert distance(values, whole(0, (47, 430)[place % 2])) < limit(SAMPLES)
    assert abs(np.corrcoef(centres.T) - np.eye(2 * step.holes)).max() < 4.5 / np.sqrt(SAMPLES)


@pytest.mark.parametrize(
    ("step", "start", "width", "extent"),
    [
        (Mask(), "first_mel", "mels", 48),
        (Mask(), "first_frame", "frames", 431),
        (FrequencyMask(), "starts", "widths", 48),
        (TimeMask(), "starts", "widths", 431),
    ],
    ids=["mask-mels", "mask-frames", "freqmask", "timemask"],
)
def test_bands_lie_anywhere_within_the_image(step: Augmentation, start: str, width: str, extent: int) -> None:
    draws = drawn(step, MEL)
    starts, widths = draws[start].ravel(), draws[width].ravel()
    assert starts.min() == 0
    assert (starts + widths).max() == extent
    # Given its width, a band starts at any of extent - width + 1 places: spread evenly, that is [0, 1).
    spread = np.random.default_rng(0).random(len(starts))
    assert distance((starts + spread) / (extent - widths + 1), uniform(0, 1)) < limit(SAMPLES)


def test_resized_crops_lie_anywhere_within_the_image() -> None:
    draws = drawn(RandomResizedCrop(), MEL)
    for start, size, extent in (("top", "height", 48), ("left", "width", 431)):
        place = draws[start] / (extent - draws[size])
        assert distance(place.ravel(), uniform(0, 1)) < limit(SAMPLES)


def test_cells_of_a_distorted_grid_fill_the_image_and_differ_within_the_limit() -> None:
    draws = drawn(GridDistortion(), MelConfig(n_mels=50), batches=2)
    for name, extent in (("rows", 50), ("columns", 431)):
        cells = draws[name].reshape(-1, 5)
        np.testing.assert_allclose(cells.sum(axis=1), extent, rtol=1e-5)
        if name == "rows":  # whose cells are of equal size
            ratios = cells.max(axis=1) / cells.min(axis=1)
            assert ratios.max() <= 1.3 / 0.7 * (1 + 1e-5)
            assert ratios.max() > 1.5


@pytest.mark.parametrize("step", [CutMix(), Mixup()], ids=["cutmix", "mixup"])
def test_partners_are_others_of_the_whole_batch_each_taken_once(step: Augmentation) -> None:
    draws = drawn(step, MEL)
    _assert_partners(draws["partner"].reshape(10, -1))


@pytest.fixture(scope="module")
def both(numbered: ShardSet) -> dict[str, Array]:
    """What the graph draws for 2,000 samples of the recipe both."""
    mel = MelConfig(seconds=0.02, n_fft=256, n_mels=4)
    pairing = Pairing(crops="independent")
    return traced(numbered, parse_recipe("both"), mel, pairing, batches=4, batch_size=500)


def test_partners_of_the_two_views_are_drawn_separately(both: dict[str, Array]) -> None:
    for name in ("partner", "cutmix.partner", "mixup.partner"):
        one, other = (both[f"view_{view}.{name}"].reshape(4, -1) for view in (1, 2))
        _assert_partners(one)
        _assert_partners(other)
        assert (one == other).mean() < 0.02  # one in 500 is by chance
    assert (both["view_1.cutmix.partner"] == both["view_1.mixup.partner"]).mean() < 0.02


def test_draws_of_the_two_views_and_of_all_steps_are_independent(both: dict[str, Array]) -> None:
    columns = _columns(both)
    correlations = np.corrcoef(np.stack(list(columns.values())))
    names = list(columns)
    # What one step draws may hang together: a box and where it begins, a band's width and start.
    apart = np.array([[_owner(one) != _owner(other) for other in names] for one in names])
    assert len(names) > 40
    assert sum(name.startswith("view_1") for name in names) == len(names) // 2
    assert abs(correlations[apart]).max() < 5 / np.sqrt(2000)
    # Nor does what is drawn for a sample depend on the one before it.
    for values in columns.values():
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / np.sqrt(2000)


def test_a_step_changes_one_view_whether_or_not_it_changes_the_other(both: dict[str, Array]) -> None:
    names = [
        name.removeprefix("view_1.") for name in both if name.startswith("view_1.") and name.endswith(".on")
    ]
    assert len(names) == 9
    for name in names:
        one, other = (both[f"view_{view}.{name}"].ravel() for view in (1, 2))
        p = dict(zip(["wavemix", "pitch", "stretch"], [0.6] * 3, strict=True)).get(name[:-3], None)
        p = p or parse_recipe(name[:-3])[0].p
        table = np.array([[((one == a) & (other == b)).mean() for b in (0, 1)] for a in (0, 1)])
        wanted = np.outer([1 - p, p], [1 - p, p])
        np.testing.assert_array_less(abs(table - wanted), 4.5 * np.sqrt(wanted * (1 - wanted) / 2000))


def _assert_partners(partners: Array) -> None:
    """Check that in each batch every sample has another one as its partner, and each is one once."""
    size = partners.shape[1]
    for batch in partners:
        np.testing.assert_array_equal(np.sort(batch), np.arange(size))
        assert (batch != np.arange(size)).all()
    # From the whole batch: as far away as any two are.
    away = ((partners - np.arange(size)) % size).ravel()
    assert distance(away, whole(1, size - 1)) < limit(away.size) + 1 / size


def _columns(draws: dict[str, Array]) -> dict[str, Array]:
    """Return all numbers drawn per sample, one column each, by name, that vary."""
    columns: dict[str, Array] = {}
    for name, values in draws.items():
        if "." not in name or name.split(".")[1] in ("original", "tempo"):
            continue
        table: Any = values.reshape(values.shape[0] * values.shape[1], -1).astype(np.float64)
        columns |= {f"{name}:{place}": column for place, column in enumerate(table.T) if column.std() > 0}
    return columns


def _owner(name: str) -> str:
    """Return which step of which view drew `name`, such as view_1.cutmix."""
    return ".".join(name.split(":")[0].split(".")[:2])
