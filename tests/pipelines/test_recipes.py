from typing import Any

import pytest

from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.image_augmentations import CutMix, CutOut, HorizontalFlip, Mask, Tilt
from siamusic_fast.pipelines.recipes import (
    AUGMENTATIONS,
    RECIPES,
    Recipe,
    check_unmixed,
    file_name,
    parse_recipe,
    to_recipe,
)
from siamusic_fast.pipelines.wave_augmentations import Noise, PitchShift, TimeStretch
from tests.pipelines.helpers import MEL

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
        ("qqqq", "'qqqq' is unknown: there are image, audio, both, none and the augmentations"),
        ("mask(q=1)", r"mask\(q=1\) is no augmentation: its parameters are p, max_mels, max_frames"),
        ("mask(0.5)", r"mask\(0.5\) is no augmentation"),
        ("mask(p='often')", "p = 'often' of Mask must be a number, such as 0.5"),
        ("mask(p=True)", "p = True of Mask must be a number"),
        ("mask(p=2)", "p = 2 of Mask must be at least 0 and at most 1"),
        ("mask,(", r"'mask,\(' cannot be read"),
        ("", "'' cannot be read"),
        ("__import__('os').remove('x')", "is unknown"),
        ("image,mask", "'image' is a list of its own: give it alone"),
        ("cutout(holes=1.5)", "holes = 1.5 of CutOut must be a whole number, such as 2"),
        ("griddistortion(steps=2.0)", "steps = 2.0 of GridDistortion must be a whole number"),
        ("timemask(count=True)", "count = True of TimeMask must be a whole number"),
        ("freqmask(count=0)", "count = 0 of FrequencyMask must be at least 1 and at most 64"),
        ("timemask(count=65)", "count = 65 of TimeMask must be at least 1 and at most 64"),
        ("cutout(size=0)", "size = 0 of CutOut must be at least 1"),
        ("cutout(holes=65)", "holes = 65 of CutOut must be at least 1 and at most 64"),
        ("mask(max_mels=1.5)", "max_mels = 1.5 of Mask must be above 0 and at most 1"),
        ("rrc(min_mels=0)", "min_mels = 0 of RandomResizedCrop must be above 0"),
        ("mixup(alpha=0)", "alpha = 0 of Mixup must be above 0"),
        ("cutmix(alpha=-1)", "alpha = -1 of CutMix must be above 0"),
        ("wavemix(alpha=1e999)", r"alpha = inf of WaveMixup must be above 0 and at most 1e\+06"),
        ("mask(p={[]:1})", r"mask\(p={\[\]: 1}\) must have numbers as its parameters, such as p=0.5"),
        ("hflip(p=-0.1)", "p = -0.1 of HorizontalFlip must be at least 0 and at most 1"),
        ("pitch(semitones=200)", "semitones = 200 of PitchShift must be at least 0 and at most 12"),
        ("gain(decibels=500)", "decibels = 500 of Gain must be at least 0 and at most 100"),
        ("noise(max_snr=500)", "max_snr = 500 of Noise must be at least -100 and at most 100"),
        ("noise(min_snr=30,max_snr=20)", "min_snr = 30 of Noise must not be above max_snr = 20"),
        ("stretch(min_rate=0)", "min_rate = 0 of TimeStretch must be at least 0.25"),
        ("stretch(min_rate=2,max_rate=1)", "min_rate = 2 of TimeStretch must not be above max_rate = 1"),
        ("stretch(max_rate=5)", "max_rate = 5 of TimeStretch must be at least 0.25 and at most 4"),
        ("griddistortion(steps=0)", "steps = 0 of GridDistortion"),
        ("griddistortion(limit=1)", "limit = 1 of GridDistortion must be at least 0 and at most 0.99"),
        ("tilt(max_rise=-0.1)", "max_rise = -0.1 of Tilt must be at least 0 and at most 10"),
        ("griddistortion(steps=60)", "steps = 60 of GridDistortion must be at most 48: .* 48 x 87 pixels"),
    ],
)
def test_what_is_no_recipe_is_refused_with_what_there_is(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        to_recipe(text, MEL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "recipe",
    [["image"], lambda image: image, (Mask(), "cutout"), None, 3],
    ids=lambda recipe: repr(recipe)[:12],
)
def test_what_is_neither_text_nor_augmentations_is_refused_with_an_example(recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"aug = .* must be text such as 'image'.* \(Mask\(p=0.5\)"):
        to_recipe(recipe, MEL)


@pytest.mark.parametrize(
    ("recipe", "names"), [("image", "cutmix, mixup"), ("audio", "wavemix"), ("mask,mixup(p=0.1)", "mixup")]
)
def test_a_recipe_that_mixes_tracks_does_not_serve_labelled_ones(recipe: str, names: str) -> None:
    with pytest.raises(ConfigError, match=f"^{names} would add another track to a labelled one"):
        check_unmixed(recipe)
    check_unmixed((Mask(), Noise(), TimeStretch(), Tilt()))


def test_a_probability_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="p = nan of Mask"):
        Mask(p=float("nan"))


def test_every_augmentation_has_a_name_and_defaults_that_can_be_spelt_out() -> None:
    for name, kind in AUGMENTATIONS.items():
        (step,) = parse_recipe(name)
        assert type(step) is kind
        assert parse_recipe(f"{name}(p={step.p})") == (step,)
    assert not set(AUGMENTATIONS) & set(RECIPES)


def test_a_recipe_can_be_part_of_a_file_name() -> None:
    assert file_name("cutmix(p=0.3),hflip") == "cutmix-p-0.3-hflip"
