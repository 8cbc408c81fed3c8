"""Recipes: tuples of augmentations in the order in which they are applied, and the text that `--aug` takes.

image                       a recipe by its name
mask,cutout                 two augmentations with their defaults
cutmix(p=0.3),hflip         one of them with another probability
"""

import ast
import dataclasses
import difflib
import re

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import image_augmentations as images
from siamusic_fast.pipelines import wave_augmentations as waves
from siamusic_fast.pipelines.augmentation import Augmentation

Recipe = tuple[Augmentation, ...]

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "wavemix": waves.WaveMixup,
    "pitch": waves.PitchShift,
    "stretch": waves.TimeStretch,
    "gain": waves.Gain,
    "noise": waves.Noise,
    "cutmix": images.CutMix,
    "mixup": images.Mixup,
    "mask": images.Mask,
    "hflip": images.HorizontalFlip,
    "vflip": images.VerticalFlip,
    "cutout": images.CutOut,
    "griddistortion": images.GridDistortion,
    "rrc": images.RandomResizedCrop,
    "tilt": images.Tilt,
    "freqmask": images.FrequencyMask,
    "timemask": images.TimeMask,
}
"""Every augmentation by its name on the command line."""

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
    """Return the recipe that `text` names or lists.

    Raises `ConfigError` for an unknown name, with the nearest one, for an unknown parameter, and for a value
    that cannot be.
    """
    if text.strip() in RECIPES:
        return RECIPES[text.strip()]
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        tree = None
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ConfigError(
            f"aug = {text!r} cannot be read: write it as mask,cutout or cutmix(p=0.3),hflip (on the command "
            f"line --aug)."
        )
    return tuple(_augmentation(item) for item in tree.elts)


def recipe_text(recipe: Recipe) -> str:
    """Return the text that `parse_recipe` reads as `recipe`, whose augmentations have names."""
    return ",".join(map(_augmentation_text, recipe)) or "none"


def to_recipe(aug: str | Recipe, mel: MelConfig) -> Recipe:
    """Return `aug`, or what `parse_recipe` reads from it; raise `ConfigError` if it does not fit `mel`."""
    recipe = _checked(aug)
    for augmentation in recipe:
        augmentation.check(mel)
    return recipe


def check_unmixed(aug: str | Recipe) -> None:
    """Raise `ConfigError` if `aug` mixes tracks, because their labels are not mixed with them."""
    if mixing := [aug_name(augmentation) for augmentation in _checked(aug) if augmentation.mixes]:
        raise ConfigError(
            f"{', '.join(mixing)} would add another track to a labelled one: leave it out (on the command "
            f"line --aug)."
        )


def aug_name(augmentation: Augmentation) -> str:
    """Return the name of an augmentation on the command line; of one of one's own, that of its class."""
    names = {kind: name for name, kind in AUGMENTATIONS.items()}
    return names.get(type(augmentation), type(augmentation).__name__.lower())


def file_name(text: str) -> str:
    """Return the recipe `text` as a part of a file name: ``cutmix(p=0.3),hflip`` is cutmix-p-0.3-hflip."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", text).strip("-")


def _checked(aug: str | Recipe) -> Recipe:
    """Return `aug` as a tuple of augmentations, whatever a caller without types may have given."""
    if isinstance(aug, str):
        return parse_recipe(aug)
    if isinstance(aug, tuple | list) and all(isinstance(one, Augmentation) for one in aug):
        return tuple(aug)
    raise ConfigError(
        f"aug = {aug!r} must be text such as 'image' or 'mask,cutout', or a tuple of augmentations such as "
        f"(Mask(p=0.5), CutOut())."
    )


def _augmentation(item: ast.expr) -> Augmentation:
    """Return the augmentation that ``name`` or ``name(parameter=number, ...)`` describes."""
    if not isinstance(item, ast.Call):
        return _kind(ast.unparse(item))()  # type: ignore[call-arg]
    kind = _kind(ast.unparse(item.func))
    known = [field.name for field in dataclasses.fields(kind)]
    if item.args or not {keyword.arg for keyword in item.keywords} <= set(known):
        raise ConfigError(f"{ast.unparse(item)} is no augmentation: its parameters are {', '.join(known)}.")
    try:
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in item.keywords}
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{ast.unparse(item)} must have numbers as its parameters, such as p=0.5."
        ) from error
    return kind(**values)


def _augmentation_text(augmentation: Augmentation) -> str:
    """Return the name of an augmentation, with the parameters that are not its defaults."""
    values = ",".join(
        f"{field.name}={getattr(augmentation, field.name)!r}"
        for field in dataclasses.fields(augmentation)
        if getattr(augmentation, field.name) != field.default
    )
    return f"{aug_name(augmentation)}({values})" if values else aug_name(augmentation)


def _kind(name: str) -> type[Augmentation]:
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    if name in RECIPES:
        raise ConfigError(f"{name!r} is a list of its own: give it alone, or list augmentations.")
    near = difflib.get_close_matches(name, [*AUGMENTATIONS, *RECIPES], n=1)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise ConfigError(
        f"aug = {name!r} is unknown: {hint} {', '.join(RECIPES)} "
        f"and the augmentations {', '.join(AUGMENTATIONS)} (on the command line --aug)."
    )
