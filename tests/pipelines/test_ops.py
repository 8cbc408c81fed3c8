"""Operations on images as numbers: merged ones do the same, and bits say the same as boxes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.ops import Erase, Flip, ImageOp, MixImages, box_bits, merged
from tests.pipelines.helpers import Array
from tests.pipelines.reference import changed

ROWS, N_MELS, FRAMES = 3, 7, 11
SIZE = MelConfig(n_mels=N_MELS, seconds=10 * 256 / 22_050)


@st.composite
def changes(draw: st.DrawFn) -> ImageOp:
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["flip", "flip", "erase", "erase", "mix"]))
    if kind == "flip":
        return Flip(mels=rng.random(ROWS) < 0.5, frames=rng.random(ROWS) < 0.5)
    if kind == "mix":
        return MixImages(partner=rng.permutation(ROWS), weight=rng.random(ROWS))
    number = draw(st.sampled_from([1, 2, 5, 40]))
    begin = rng.integers(-3, [[[N_MELS, FRAMES]]], size=(ROWS, number, 2))
    end = begin + rng.integers(0, 6, size=begin.shape)
    return Erase(boxes=np.stack([begin, end], axis=-1).reshape(ROWS, number, 4))


@given(st.lists(changes(), max_size=7))
@settings(max_examples=150, deadline=None)
def test_merged_changes_do_what_all_of_them_do_one_after_the_other(steps: list[ImageOp]) -> None:
    images: Array = 1 + np.random.default_rng(0).random((ROWS, N_MELS, FRAMES))
    found = expected = images
    for step in steps:
        expected = changed(expected, step)
    fewer = merged(steps, SIZE)
    for step in fewer:
        found = changed(found, step)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    kinds = [type(step) for step in fewer]
    # Between two mixes there is one flip at most, behind erasures of as few changes as 64 boxes allow.
    assert (Flip, Flip) not in itertools.pairwise(kinds)
    assert (Flip, Erase) not in itertools.pairwise(kinds)
    for one, other in itertools.pairwise(fewer):
        if isinstance(one, Erase) and isinstance(other, Erase):
            assert one.boxes.shape[1] + other.boxes.shape[1] > 64


@pytest.mark.parametrize("number", [1, 8, 9, 17, 33, 64])
def test_a_pixel_lies_in_a_box_exactly_if_its_row_and_its_column_share_a_bit(number: int) -> None:
    rng = np.random.default_rng(number)
    begin = rng.integers(-2, 8, size=(ROWS, number, 2))
    boxes = np.stack([begin, begin + rng.integers(0, 3, size=begin.shape)], axis=-1).reshape(ROWS, number, 4)
    of_rows, of_columns = box_bits(boxes, SIZE)
    inside = (of_rows[:, :, None] & of_columns[:, None, :]) != 0
    for row in range(ROWS):
        expected = np.zeros((N_MELS, FRAMES), dtype=bool)
        for top, bottom, left, right in boxes[row].clip(0):
            expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(inside[row], expected)
