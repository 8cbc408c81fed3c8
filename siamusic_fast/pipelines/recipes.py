"""Recipes: augmentations in the order in which they are applied, by name or spelt out.

image                       a recipe of the paper
mask,cutout                 two augmentations with their defaults
cutmix(p=0.3),hflip         one of them with another probability
"""

import ast
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import augmentations as paper
from siamusic_fast.pipelines import extras
from siamusic_fast.pipelines.augmentations import Augmentation

Recipe = tuple[Augmentation, ...]

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "wavemix": paper.WaveMixup,
    "pitch": paper.PitchShift,
    "stretch": paper.TimeStretch,
    "gain": extras.Gain,
    "noise": extras.Noise,
    "cutmix": paper.CutMix,
    "mixup": paper.Mixup,
    "mask": paper.Mask,
    "hflip": paper.HorizontalFlip,
    "vflip": paper.VerticalFlip,
    "cutout": paper.CutOut,
    "griddistortion": extras.GridDistortion,
    "rrc": extras.RandomResizedCrop,
    "tilt": extras.Tilt,
    "freqmask": extras.FrequencyMask,
    "timemask": extras.TimeMask,
}
"""What a recipe can be made of, by the name that the command line knows."""

_AUDIO, _IMAGE = (
    tuple(AUGMENTATIONS[name]() for name in names)  # type: ignore[call-arg]
    for names in (
        ("wavemix", "pitch", "stretch"),
        ("cutmix", "mixup", "mask", "hflip", "vflip", "cutout"),
    )
)
RECIPES: dict[str, Recipe] = {"image": _IMAGE, "audio": _AUDIO, "both": _AUDIO + _IMAGE, "none": ()}
"""The recipes of the paper, in the order of Table 1, and both of them one after the other."""


def parse_recipe(text: str) -> Recipe:
    """Return the recipe that `text` names or spells out.

    Raises `ConfigError` for an unknown name, with the nearest one, for a parameter that there is not, and for
    a value that cannot be.
    """
    if text.strip() in RECIPES:
        return RECIPES[text.strip()]
    return tuple(_augmentation(step) for step in _steps(text))


def to_recipe(recipe: str | Recipe, mel: MelConfig) -> Recipe:
    """Return `recipe`, or what `parse_recipe` reads from it; raise `ConfigError` if it does not fit `mel`."""
    steps = _checked(recipe)
    for step in steps:
        step.check(mel)
    return steps


def check_unmixed(recipe: str | Recipe) -> None:
    """Raise `ConfigError` if `recipe` mixes tracks, whose labels are not mixed with them."""
    steps = _checked(recipe)
    if mixing := [step_name(step) for step in steps if step.mixes]:
        raise ConfigError(
            f"{', '.join(mixing)} would add another track to a labelled one: leave it out of the recipe (on "
            f"the command line --aug)."
        )


def step_name(step: Augmentation) -> str:
    """Return the name of `step` on the command line; of one that is not known there, its class's."""
    names = {kind: name for name, kind in AUGMENTATIONS.items()}
    return names.get(type(step), type(step).__name__.lower())


def file_name(text: str) -> str:
    """Return the recipe `text` as a part of a file name: ``cutmix(p=0.3),hflip`` is cutmix-p-0.3-hflip."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", text).strip("-")


def _checked(recipe: str | Recipe) -> Recipe:
    """Return `recipe` as a tuple of augmentations, whatever a caller without types may have given."""
    if isinstance(recipe, str):
        return parse_recipe(recipe)
    if isinstance(recipe, tuple | list) and all(isinstance(step, Augmentation) for step in recipe):
        return tuple(recipe)
    raise ConfigError(
        f"aug = {recipe!r} must be text such as 'image' or 'mask,cutout', or a tuple of augmentations "
        f"such as (Mask(p=0.5), CutOut())."
    )


def _steps(text: str) -> Iterator[ast.expr]:
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        tree = None
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ConfigError(
            f"aug = {text!r} cannot be read: write it as mask,cutout or cutmix(p=0.3),hflip (on the "
            f"command line --aug)."
        )
    yield from tree.elts


def _augmentation(step: ast.expr) -> Augmentation:
    """Return the augmentation that ``name`` or ``name(parameter=number, ...)`` describes."""
    called = step.func if isinstance(step, ast.Call) else step
    kind = _kind(ast.unparse(called))
    if not isinstance(step, ast.Call):
        return kind()  # type: ignore[call-arg]
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {}
    for keyword in step.keywords:
        if keyword.arg not in known or step.args:
            break
        values[keyword.arg] = _number(keyword, whole=known[keyword.arg] is int)
    if step.args or len(values) < len(step.keywords):
        raise ConfigError(f"{ast.unparse(step)} is no augmentation: its parameters are {', '.join(known)}.")
    return kind(**values)


def _kind(name: str) -> type[Augmentation]:
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    if name in RECIPES:
        raise ConfigError(f"{name!r} is a recipe by itself: give it alone, or list augmentations.")
    near = difflib.get_close_matches(name, [*AUGMENTATIONS, *RECIPES], n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(
        f"recipe or augmentation {name!r} is unknown: {hint} the recipes {', '.join(RECIPES)} "
        f"and the augmentations {', '.join(AUGMENTATIONS)} (on the command line --aug)."
    )


def _number(keyword: ast.keyword, *, whole: bool) -> float:
    try:
        value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError):
        value = None
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else int | float)
        or not math.isfinite(value)
    ):
        kind, example = ("a whole number", "holes=2") if whole else ("a number", "p=0.5")
        raise ConfigError(f"{ast.unparse(keyword)} of an augmentation must be {kind}, such as {example}.")
    return value
