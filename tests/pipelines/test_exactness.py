"""Every image step and the whole image recipe, rebuilt with numpy and torchvision from what was drawn."""

from typing import Any

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import ImageAugmentation
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, RECIPES, Recipe, parse_recipe
from siamusic_fast.pipelines.trace import TracedView, trace
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.reference import STEPS, augmented

OPTIONS: dict[str, Any] = {
    "mel": MelConfig(seconds=1.0),
    "normalisation": Normalisation(-30.0, 10.0),
    "tracks": 23,
}
TOLERANCE = {"mixup": 1e-5, "rrc": 2e-4, "griddistortion": 2e-4, "tilt": 1e-6}
"""Of images with a deviation of about 1: rounding in float32, of weights and of places. Others: none."""


def views(shard_set: ShardSet, recipe: Recipe, device: str = "cpu") -> tuple[TracedView, TracedView]:
    return trace(shard_set, recipe=recipe, device=device, **OPTIONS).views


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_to_an_image_what_was_drawn(numbered: ShardSet, name: str, p: float) -> None:
    recipe = parse_recipe(f"{name}(p={p})")
    for view in views(numbered, recipe):
        on = view.draws[f"{name}.on"].astype(bool)
        assert on.all() if p == 1 else 4 <= on.sum() <= 19  # outside: a chance of 1 in 3,000
        np.testing.assert_array_equal(view.images[~on], view.originals[~on])
        np.testing.assert_allclose(
            view.images,
            augmented(view.originals, recipe, view.draws),
            rtol=0,
            atol=TOLERANCE.get(name, 0),
        )


def test_every_image_step_there_is_has_a_reference() -> None:
    assert set(STEPS) == {name for name, kind in AUGMENTATIONS.items() if issubclass(kind, ImageAugmentation)}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_partners_are_as_often_changed_themselves_as_all_are(numbered: ShardSet, name: str) -> None:
    # Were they drawn from the changed ones only, as inside an `if`, all of them would be.
    changed = []
    for seed in range(3):
        for view in trace(numbered, recipe=f"{name}(p=0.5)", seed=seed, **OPTIONS).views:
            on = view.draws[f"{name}.on"].astype(bool)
            changed += on[view.draws[f"{name}.partner"].ravel()][on].tolist()
    assert 0.25 < np.mean(changed) < 0.75


@pytest.mark.parametrize("text", ["image", "mask,mask", "rrc(p=1),cutmix(p=1),griddistortion(p=1),hflip"])
def test_the_steps_of_a_recipe_follow_each_other_in_its_order(numbered: ShardSet, text: str) -> None:
    recipe = parse_recipe(text)
    for view in views(numbered, recipe):
        expected = augmented(view.originals, recipe, view.draws)
        tolerance = 1e-5 if text in RECIPES else 5e-4
        np.testing.assert_allclose(view.images, expected, rtol=0, atol=tolerance)


def test_both_views_start_from_the_same_crops_and_change_them_differently(numbered: ShardSet) -> None:
    view_1, view_2 = views(numbered, RECIPES["image"])
    np.testing.assert_array_equal(view_1.originals, view_2.originals)
    np.testing.assert_array_equal(view_1.positions, view_2.positions)
    assert all(not np.array_equal(a, b) for a, b in zip(view_1.images, view_2.images, strict=True))
