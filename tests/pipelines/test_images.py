"""Every change of images and the whole image recipe, against numpy and torchvision given what was drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import math as dali_math

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augmentation import ImageAugmentation, WaveAugmentation
from siamusic_fast.pipelines.ops import (
    Erase,
    Flip,
    ImageFunction,
    ImageOp,
    MixImages,
    Paste,
    Warp,
    WaveFunction,
    WaveOp,
)
from siamusic_fast.pipelines.random_numbers import RandomNumbers
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, Recipe, parse_recipe
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.helpers import (
    BACKENDS,
    NORMALIZED,
    Array,
    first_views,
    plan_of,
    two_views,
    views_as_on_gpu,
)
from tests.pipelines.reference import changed

ENGINES = (*BACKENDS, "dali as on a GPU")
STEPS = [name for name, kind in AUGMENTATIONS.items() if issubclass(kind, ImageAugmentation)]
RESIZED = 2e-4
"""Of pixels that lie between pixels, in deviations: places are rounded in float32."""
SETTINGS: dict[str, Any] = {"frontend": NORMALIZED, "batch_size": 23}


def computed(shard_set: ShardSet, recipe: Any, engine: str, **settings: Any) -> list[Array]:
    settings = {**SETTINGS, **settings}
    if engine in BACKENDS:
        return first_views(two_views(shard_set, recipe, backend=engine, **settings))
    return views_as_on_gpu(plan_of(shard_set, recipe, **settings))


def expected(shard_set: ShardSet, recipe: Any, engine: str, **settings: Any) -> list[Array]:
    """Return the plain views of `engine` after the steps of `recipe`, one after the other."""
    settings = {**SETTINGS, **settings}
    plain = first_views(two_views(shard_set, "none", backend=engine.split()[0], **settings))
    views = plan_of(shard_set, recipe, **settings).batch((0, 0)).views
    for number, view in enumerate(views):
        for change in view.drawn.values():
            assert isinstance(change, ImageOp)
            plain[number] = changed(plain[number], change)
    return plain


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_to_an_image_what_was_drawn(numbered: ShardSet, name: str, engine: str) -> None:
    recipe = f"{name}(p=0.7)"
    tolerance = RESIZED if name in ("rrc", "griddistortion") else 1e-5 if name in ("mixup", "tilt") else 1e-6
    for found, wanted in zip(
        computed(numbered, recipe, engine), expected(numbered, recipe, engine), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_every_change_of_images_is_some_steps(numbered: ShardSet) -> None:
    views = plan_of(numbered, ",".join(STEPS)).batch((0, 0)).views
    kinds = {type(change) for change in views[0].drawn.values()}
    assert kinds == {MixImages, Paste, Erase, Flip, Warp, ImageFunction}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("crops", ["same", "independent"])
@pytest.mark.parametrize(
    "recipe",
    [
        "image",
        "hflip,mask,vflip,cutout,mask",
        "freqmask(count=64,p=1),cutout(holes=40,p=1),hflip,cutout(holes=9)",
    ],
)
def test_the_steps_of_a_recipe_follow_each_other_in_its_order(
    numbered: ShardSet, recipe: str, crops: str, engine: str
) -> None:
    for found, wanted in zip(
        computed(numbered, recipe, engine, crops=crops),
        expected(numbered, recipe, engine, crops=crops),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_resized_images_can_be_mixed_and_flipped(numbered: ShardSet, engine: str) -> None:
    recipe = "rrc(p=1),cutmix(p=1),griddistortion(p=1),hflip,rrc"
    for found, wanted in zip(
        computed(numbered, recipe, engine), expected(numbered, recipe, engine), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5 * RESIZED)


@pytest.mark.parametrize("engine", ENGINES)
def test_features_of_any_size_can_be_distorted(numbered: ShardSet, engine: str) -> None:
    frontend = type(NORMALIZED)(mel=MelConfig(seconds=0.5, n_mels=13, hop_length=333), mean=-30, std=10)
    recipe = "griddistortion(p=1,steps=7),rrc(p=1),griddistortion(p=1,limit=0)"
    for found, wanted in zip(
        computed(numbered, recipe, engine, frontend=frontend),
        expected(numbered, recipe, engine, frontend=frontend),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5 * RESIZED)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_differ_once_they_are_augmented_and_not_before(numbered: ShardSet, backend: str) -> None:
    one, other = computed(numbered, "none", backend)
    np.testing.assert_array_equal(one, other)
    one, other = computed(numbered, "both", backend)
    assert (one != other).any(axis=(1, 2)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_batch_of_one_track_mixes_it_with_itself(numbered: ShardSet, backend: str) -> None:
    settings: dict[str, Any] = {"batch_size": 1}
    plain = computed(numbered, "none", backend, **settings)
    mixed = computed(numbered, "mixup(p=1),cutmix(p=1)", backend, **settings)
    np.testing.assert_allclose(mixed, plain, rtol=0, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Squash(ImageAugmentation):
    """Maps each pixel x to tanh(factor x)."""

    p: float = 1.0

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> ImageOp:
        factor = rng.uniform(0.5, 2, 1, 1, 1).astype(np.float32)
        return ImageFunction(
            values={"factor": factor},
            dali=lambda image, values: dali_math.tanh(image * values["factor"]),
            torch=lambda images, values: torch.tanh(images * values["factor"]),
        )


@dataclass(frozen=True, kw_only=True)
class Lift(WaveAugmentation):
    """Adds an offset to each wave."""

    p: float = 1.0

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> WaveOp:
        offset = rng.uniform(1000, 5000, 1).astype(np.float32)
        return WaveFunction(values={"offset": offset}, dali=lifted, torch=lifted)


def lifted(wave: Any, values: Mapping[str, Any]) -> Any:
    return wave + values["offset"]


@dataclass(frozen=True, kw_only=True)
class Fade(ImageAugmentation):
    """Fades the end of a crop to the mean: one dataclass for both engines."""

    p: float = 0.5
    max_seconds: float = 1.0

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> ImageFunction:
        seconds = rng.uniform(0.1, self.max_seconds, 1) * rng.bernoulli(self.p)[:, None]
        left = np.linspace(mel.seconds, 0, mel.frames)  # from each frame to the end
        gain = np.clip(left / np.maximum(seconds, 1e-9), 0, 1).astype(np.float32)
        gain[seconds[:, 0] == 0] = 1.0
        return ImageFunction(values={"gain": gain[:, None, :, None]}, dali=faded, torch=faded)


def faded(image: Any, values: Mapping[str, Any]) -> Any:
    return image * values["gain"]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_dataclass_of_ones_own_serves_both_engines(numbered: ShardSet, engine: str) -> None:
    fade = Fade(max_seconds=0.5)
    plain = first_views(two_views(numbered, "none", backend=engine.split()[0], **SETTINGS))
    views = plan_of(numbered, (fade,), **SETTINGS).batch((0, 0)).views
    for found, view, image in zip(computed(numbered, (fade,), engine), views, plain, strict=True):
        drawn = view.drawn["fade"]
        assert isinstance(drawn, ImageFunction)
        gain = drawn.values["gain"][..., 0]
        np.testing.assert_allclose(found, image * gain, rtol=0, atol=1e-5)
        touched = np.asarray((gain < 1).any(axis=(1, 2)))
        assert 0 < touched.sum() < len(touched)
        assert (found[touched][..., -1] == 0).all()
        np.testing.assert_array_equal(found[~touched], image[~touched])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_image_function_of_ones_own_is_applied_in_its_place(numbered: ShardSet, engine: str) -> None:
    recipe: Recipe = (*parse_recipe("mask(p=1)"), Squash(), *parse_recipe("hflip(p=1)"))
    views = plan_of(numbered, recipe, **SETTINGS).batch((0, 0)).views
    plain = first_views(two_views(numbered, "none", backend=engine.split()[0], **SETTINGS))
    for found, view, image in zip(computed(numbered, recipe, engine), views, plain, strict=True):
        mask, squash, _ = view.drawn.values()
        assert isinstance(mask, Erase)
        assert isinstance(squash, ImageFunction)
        wanted = np.tanh(changed(image, mask) * squash.values["factor"][..., 0])
        np.testing.assert_allclose(found, wanted[..., ::-1], rtol=0, atol=1e-5)


def test_a_wave_function_of_ones_own_gives_the_same_in_both_engines(numbered: ShardSet) -> None:
    recipes: Sequence[Recipe] = [(Lift(),), (*parse_recipe("stretch(p=1)"), Lift())]
    for recipe in recipes:
        torch_views, dali_views, plain = (
            computed(numbered, steps, backend) for steps, backend in
            ((recipe, "torch"), (recipe, "dali"), (recipe[:-1], "torch"))
        )  # fmt: skip
        np.testing.assert_allclose(dali_views, torch_views, rtol=0, atol=2e-3)
        # An offset shows in the lowest bands alone, where it is louder than the noise.
        raised = torch_views[0] - plain[0]
        assert raised[:, 0].mean() > 0.5
        assert abs(raised[:, 8:]).mean() < 0.1
