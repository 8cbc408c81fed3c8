import dataclasses

import pytest

from siamusic_fast.config.studies import AblateConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.recipes import RECIPES, parse_recipe, recipe_text
from siamusic_fast.studies.ablate import recipes


def test_the_rows_are_each_part_alone_and_each_left_out() -> None:
    config = AblateConfig(aug="mask,hflip,cutout(p=0.5)")
    found = {row: recipe_text(recipe) for row, recipe in recipes(config).items()}
    assert found == {
        ("whole", "mask,hflip,cutout(p=0.5)"): "mask,hflip,cutout(p=0.5)",
        ("nothing", "none"): "none",
        ("alone", "mask"): "mask",
        ("alone", "hflip"): "hflip",
        ("alone", "cutout"): "cutout(p=0.5)",
        ("without", "mask"): "hflip,cutout(p=0.5)",
        ("without", "hflip"): "mask,cutout(p=0.5)",
        ("without", "cutout"): "mask,hflip",
    }


def test_pairs_and_factors_add_rows_and_change_none() -> None:
    config = AblateConfig(aug="image", scale=(0.5, 1.5))
    without, found = recipes(AblateConfig(aug="image")), recipes(dataclasses.replace(config, pairs=True))
    assert {row: found[row] for row in without} == without
    pairs = [recipe for (part, _), recipe in found.items() if part == "pair"]
    assert len(set(pairs)) == 15  # two of six
    # Table 1 of the paper has 0.6, 0.6, 0.4, 0.8, 0.8, 0.8: 1.5 times the last ones is above 1.
    assert [step.p for step in found["scaled", "all p x 0.5"]] == [0.3, 0.3, 0.2, 0.4, 0.4, 0.4]
    assert [step.p for step in found["scaled", "all p x 1.5"]] == [0.9, 0.9, 0.6, 1, 1, 1]


def test_two_augmentations_have_no_row_twice() -> None:
    found = recipes(AblateConfig(aug="mask,hflip", pairs=True))
    assert len(set(found.values())) == len(found) == 4


@pytest.mark.parametrize("aug", ["mask", "none", "mask,hflip,mask"])
def test_a_recipe_without_parts_is_refused(aug: str) -> None:
    with pytest.raises(ConfigError, match="two or more different augmentations"):
        recipes(AblateConfig(aug=aug))


@pytest.mark.parametrize("factors", [(1.0,), (0.5, 0.5), (2.0, 3.0, 5.0)])
def test_factors_that_change_nothing_are_refused(factors: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="has already"):
        recipes(AblateConfig(aug="image", scale=factors))
    with pytest.raises(ConfigError, match=r"scale = 0 must be a number above 0"):
        AblateConfig(scale=(0.0,))


@pytest.mark.parametrize(
    "text", [*RECIPES, "cutmix(p=0.3),hflip", "cutout(holes=2),pitch(semitones=2.5,p=0.1)"]
)
def test_the_text_of_a_recipe_is_read_as_that_recipe(text: str) -> None:
    recipe = parse_recipe(text)
    assert parse_recipe(recipe_text(recipe)) == recipe
