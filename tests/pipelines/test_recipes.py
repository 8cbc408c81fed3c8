import pytest

from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.augment import CutMix, CutOut, HorizontalFlip, Mask, PitchShift
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, RECIPES, Recipe, file_name, parse_recipe

TABLE_1 = {
    "audio": {"WaveMixup": 0.6, "PitchShift": 0.6, "TimeStretch": 0.6},
    "image": {
        **{"CutMix": 0.6, "Mixup": 0.6, "Mask": 0.4},
        **{"HorizontalFlip": 0.8, "VerticalFlip": 0.8, "CutOut": 0.8},
    },
    "none": {},
}


@pytest.mark.parametrize("name", TABLE_1)
def test_the_recipes_are_those_of_table_1(name: str) -> None:
    assert {type(step).__name__: step.p for step in parse_recipe(name)} == TABLE_1[name]


def test_both_is_one_recipe_after_the_other() -> None:
    assert parse_recipe("both") == parse_recipe("audio") + parse_recipe("image")


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("mask,cutout", (Mask(), CutOut())),
        ("cutmix(p=0.3),hflip", (CutMix(p=0.3), HorizontalFlip())),
        (" pitch ( semitones = 2 , p = 1 ) ", (PitchShift(semitones=2, p=1),)),
        ("mask(),mask(p=1)", (Mask(), Mask(p=1))),
        ("cutout(holes=1,size=8,)", (CutOut(holes=1, size=8),)),
    ],
)
def test_a_list_of_augmentations_is_a_recipe(text: str, recipe: Recipe) -> None:
    assert parse_recipe(text) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cutmx", r"'cutmx' is unknown: did you mean cutmix\?"),
        ("imag", r"'imag' is unknown: did you mean image\?"),
        ("qqqq", "'qqqq' is unknown: there are the recipes image, audio, both, none and the augmentations"),
        ("mask(q=1)", r"mask\(q=1\) is no augmentation: its parameters are p, most_mels, most_frames"),
        ("mask(0.5)", r"mask\(0.5\) is no augmentation"),
        ("mask(p='often')", r"p='often' of an augmentation must be a number"),
        ("mask(p=True)", "p=True of an augmentation must be a number"),
        ("mask(p=2)", "p = 2 of Mask must lie between 0 and 1"),
        ("mask,(", r"'mask,\(' cannot be read"),
        ("", "'' cannot be read"),
        ("__import__('os').remove('x')", "is unknown"),
        ("image,mask", "'image' is a recipe by itself"),
    ],
)
def test_what_is_no_recipe_is_refused_with_what_there_is(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_recipe(text)


def test_every_augmentation_has_a_name_and_defaults_that_can_be_spelt_out() -> None:
    for name, kind in AUGMENTATIONS.items():
        (step,) = parse_recipe(name)
        assert type(step) is kind
        assert parse_recipe(f"{name}(p={step.p})") == (step,)
    assert not set(AUGMENTATIONS) & set(RECIPES)


def test_a_recipe_can_be_part_of_a_file_name() -> None:
    assert file_name("cutmix(p=0.3),hflip") == "cutmix-p-0.3-hflip"
