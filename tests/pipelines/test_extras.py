import functools

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augment import ImageAugmentation
from siamusic_fast.pipelines.dali import DataNode
from siamusic_fast.pipelines.extras import (
    FrequencyMask,
    Gain,
    GridDistortion,
    Noise,
    RandomResizedCrop,
    Tilt,
    TimeMask,
)
from tests.pipelines.graphs import Array, run
from tests.pipelines.test_augment import MEL, SHAPE, augmented, images


def waves(count: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [
        (0.1 * (1 + index % 3) * rng.standard_normal(20_000)).astype(np.float32) for index in range(count)
    ]


def ramp() -> list[Array]:
    """Images in which a pixel's value tells its place: 1 + its row + 1,000 times its column."""
    rows, columns = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    return [(1 + rows + 1000 * columns)[..., None].astype(np.float32)] * 16


def test_gain_scales_by_up_to_the_decibels_given() -> None:
    step, batch = Gain(p=1), waves(50)
    decibels = []
    for before, after in zip(
        batch, run(lambda wave: step.wave(wave, wave, step.draw(MEL)), batch), strict=True
    ):
        factor = float(after[0] / before[0])
        np.testing.assert_allclose(after, factor * before, rtol=1e-5)
        decibels.append(20 * np.log10(factor))
    assert -6 <= min(decibels) < -4
    assert 4 < max(decibels) <= 6


def test_noise_has_the_signal_to_noise_ratio_asked_for() -> None:
    step = Noise(p=1, lowest_snr=20, highest_snr=20)
    batch = waves(10)
    noises = []
    for before, after in zip(
        batch, run(lambda wave: step.wave(wave, wave, step.draw(MEL)), batch), strict=True
    ):
        noise = after - before
        noises.append(noise)
        assert 20 * np.log10(before.std() / noise.std()) == pytest.approx(20, abs=0.2)
        assert abs(np.corrcoef(before, noise)[0, 1]) < 0.05
    assert abs(np.corrcoef(noises[0], noises[1])[0, 1]) < 0.05


@pytest.mark.parametrize("step", [GridDistortion(p=1), RandomResizedCrop(p=1)])
def test_distorted_images_keep_order_within_each_axis_by_itself(
    step: GridDistortion | RandomResizedCrop,
) -> None:
    for after in augmented(step, ramp()):
        rows, columns = after[:, SHAPE[1] // 2], after[SHAPE[0] // 2]
        assert (np.diff(rows) >= -1e-2).all()
        assert (np.diff(columns) >= -1e-2).all()
        # Separable: the image is a sum of a function of the row and one of the column.
        np.testing.assert_allclose(
            after, rows[:, None] + columns - after[SHAPE[0] // 2, SHAPE[1] // 2], atol=0.1
        )


def test_grid_distortion_fixes_the_borders_and_moves_what_is_between() -> None:
    moved = []
    for after in augmented(GridDistortion(p=1), ramp()):
        columns = after[0] // 1000
        assert columns[0] <= 1
        assert columns[-1] >= SHAPE[1] - 2
        moved.append(np.abs(columns - np.arange(SHAPE[1])).max())
    # Cells differ by up to 30 %, so that edges move by several of the 87 frames, and by less than a cell.
    assert 2 < np.mean(moved) < SHAPE[1] / 5


def test_grid_distortion_without_limit_changes_nothing() -> None:
    for before, after in zip(ramp(), augmented(GridDistortion(p=1, limit=0.0), ramp()), strict=True):
        np.testing.assert_allclose(after, before[..., 0], atol=0.1)


def test_a_resized_crop_shows_a_part_of_the_size_asked_for() -> None:
    step = RandomResizedCrop(p=1, fewest_mels=0.5, fewest_frames=0.5)
    shares = []
    for after in augmented(step, ramp()):
        columns = (after[0] - 1) / 1000
        shares.append(float(columns[-1] - columns[0]) / (SHAPE[1] - 1))
    assert min(shares) > 0.47
    assert max(shares) <= 1.001
    assert max(shares) - min(shares) > 0.15


@pytest.mark.parametrize(
    ("step", "axis", "most"),
    [(FrequencyMask(p=1), 0, 27 / 80), (TimeMask(p=1), 1, 100 / 431), (TimeMask(p=1, count=1), 1, 100 / 431)],
)
def test_specaugment_masks_are_bands_of_zeros_across_the_image(
    step: FrequencyMask | TimeMask, axis: int, most: float
) -> None:
    batch = images(40)
    for before, after in zip(batch, augmented(step, batch), strict=True):
        masked = after == 0
        np.testing.assert_array_equal(after[~masked], before[..., 0][~masked])
        lines = masked.all(axis=1 - axis)
        assert masked.sum() == lines.sum() * SHAPE[1 - axis]
        bands = (np.diff(lines.astype(int), prepend=0) == 1).sum()
        assert 1 <= bands <= step.count
        assert 1 <= lines.sum() <= step.count * int(most * SHAPE[axis])


def test_a_tilt_adds_a_line_over_the_mels_and_leaves_the_mean() -> None:
    rises = []
    for before, after in zip(images(50), augmented(Tilt(p=1, most=0.8), images(50)), strict=True):
        added = after - before[..., 0]
        rises.append(float(added[-1, 0]))
        expected = np.linspace(-rises[-1], rises[-1], SHAPE[0])[:, None]
        np.testing.assert_allclose(added, np.broadcast_to(expected, SHAPE), atol=1e-5)
    assert -0.8 <= min(rises) < -0.6
    assert 0.6 < max(rises) <= 0.8


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Noise, {"lowest_snr": 30.0, "highest_snr": 20.0}, "lowest_snr = 30 of Noise"),
        (GridDistortion, {"steps": 0}, "steps = 0 of GridDistortion"),
        (GridDistortion, {"limit": 1.0}, "limit = 1 between 0 and 1"),
        (RandomResizedCrop, {"fewest_mels": 0.0}, "fewest_mels = 0 of RandomResizedCrop"),
        (Tilt, {"most": -0.1}, "most = -0.1 of Tilt"),
    ],
)
def test_impossible_parameters_are_refused(kind: type, values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**values)


def test_features_of_any_size_can_be_distorted() -> None:
    mel = MelConfig(seconds=0.5, n_mels=13)
    batch = [np.ones((13, mel.frames, 1), dtype=np.float32)] * 2
    for step in (GridDistortion(p=1, steps=7), RandomResizedCrop(p=1)):
        for after in run(functools.partial(_whole_step, step, mel), batch, layout="HWC"):
            np.testing.assert_allclose(after, batch[0], rtol=1e-5)


def _whole_step(step: ImageAugmentation, mel: MelConfig, image: DataNode) -> DataNode:
    return step.image(image, step.draw(mel), mel)
