import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augment import (
    CutMix,
    CutOut,
    HorizontalFlip,
    ImageAugmentation,
    Mask,
    Mixup,
    TimeStretch,
    VerticalFlip,
)
from siamusic_fast.pipelines.recipes import parse_recipe
from tests.pipelines.graphs import Array, run

MEL = MelConfig(seconds=1.0)
SHAPE = (MEL.n_mels, MEL.frames)


def images(count: int) -> list[Array]:
    """Random images in which no value is zero and no two images share a value."""
    rng = np.random.default_rng(1)
    return [(rng.random((*SHAPE, 1)) + 1 + 2 * index).astype(np.float32) for index in range(count)]


def augmented(step: ImageAugmentation, batch: list[Array], seed: int = 0) -> list[Array]:
    """Return what `step` makes of each image of `batch`, [n_mels, frames]."""
    found = run(lambda image: step.image(image, step.draw(MEL), MEL), batch, layout="HWC", seed=seed)
    return [image[..., 0] for image in found]


def changed_share(step: ImageAugmentation, count: int) -> float:
    batch = images(count)
    changed = [not np.array_equal(a, b[..., 0]) for a, b in zip(augmented(step, batch), batch, strict=True)]
    return float(np.mean(changed))


@pytest.mark.parametrize(("step", "axis"), [(HorizontalFlip(p=1), 1), (VerticalFlip(p=1), 0)])
def test_flips_equal_those_of_numpy(step: ImageAugmentation, axis: int) -> None:
    batch = images(4)
    for before, after in zip(batch, augmented(step, batch), strict=True):
        np.testing.assert_array_equal(after, np.flip(before[..., 0], axis))


def test_a_mask_is_one_band_of_zeros_across_all_mels_or_all_frames() -> None:
    batch = images(64)
    heights: list[int] = []
    widths: list[int] = []
    for before, after in zip(batch, augmented(Mask(p=1), batch), strict=True):
        masked = after == 0
        np.testing.assert_array_equal(after[~masked], before[..., 0][~masked])
        rows, columns = masked.all(axis=1), masked.all(axis=0)
        band = rows if rows.any() else columns
        assert masked.sum() == band.sum() * (SHAPE[1] if rows.any() else SHAPE[0])
        assert np.ptp(np.flatnonzero(band)) + 1 == band.sum()
        (heights if rows.any() else widths).append(int(band.sum()))
    # Each kind is as likely: fewer than 16 or more than 48 of 64 would be a chance of 1 in 10,000.
    assert 16 <= len(heights) <= 48
    assert min(heights) >= 1
    assert max(heights) <= 48 * 27 / 80
    assert max(widths) <= MEL.frames * 100 / 431


def test_cutout_makes_square_holes_of_zeros() -> None:
    batch = images(32)
    step = CutOut(p=1, holes=1, size=10)
    for before, after in zip(batch, augmented(step, batch), strict=True):
        hole = after == 0
        np.testing.assert_array_equal(after[~hole], before[..., 0][~hole])
        height, width = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(height) * len(width) > 0
        # A centre lies in the image, so at least half of each side does; away from the border, all of it.
        for extent, found in zip(SHAPE, (height, width), strict=True):
            assert 5 <= len(found) <= 10
            assert len(found) == 10 or found[0] == 0 or found[-1] == extent - 1


def test_cutmix_pastes_a_rectangle_of_another_image_in_its_place() -> None:
    batch = images(32)
    areas = []
    for index, after in enumerate(augmented(CutMix(p=1), batch)):
        pasted = after != batch[index][..., 0]
        areas.append(pasted.mean())
        if not pasted.any():
            continue
        partner = int(after[pasted][0] - 1) // 2
        assert partner != index
        np.testing.assert_array_equal(after[pasted], batch[partner][..., 0][pasted])
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        assert pasted.sum() == rows.sum() * columns.sum()
        assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
        assert np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
    assert np.std(areas) > 0.1


def test_mixup_is_a_convex_mix_with_one_other_image() -> None:
    batch = images(16)
    flat = np.stack([image.ravel() for image in batch]).astype(np.float64)
    for index, after in enumerate(augmented(Mixup(p=1), batch)):
        weights, residual, _, _ = np.linalg.lstsq(flat.T, after.ravel().astype(np.float64), rcond=None)
        partners = [other for other in range(16) if other != index and weights[other] > 1e-3]
        assert residual < 1e-4
        assert len(partners) <= 1
        assert weights.min() > -1e-3
        assert weights.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "step",
    [step for step in parse_recipe("image") if isinstance(step, ImageAugmentation)],
    ids=lambda s: type(s).__name__,
)
def test_each_sample_decides_by_itself_with_the_probability_given(step: ImageAugmentation) -> None:
    count = 1000
    margin = 5 * np.sqrt(step.p * (1 - step.p) / count) + 0.02  # a CutMix box may have no area
    assert abs(changed_share(step, count) - step.p) < margin


@pytest.mark.parametrize("kind", [CutMix, Mixup, Mask, HorizontalFlip, VerticalFlip, CutOut])
def test_a_probability_of_zero_changes_nothing(kind: type[ImageAugmentation]) -> None:
    assert changed_share(kind(p=0), 50) == 0


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match=f"p = {p:g} of Mask"):
        Mask(p=p)


def test_a_stretch_must_have_its_rates_in_order() -> None:
    with pytest.raises(ConfigError, match="slowest = 2 of TimeStretch"):
        TimeStretch(slowest=2.0, fastest=1.0)
