"""What each augmentation of a recipe adds: alone, left out, in pairs, and at other probabilities."""

import dataclasses
import itertools
from pathlib import Path

from siamusic_fast.config.studies import AblateConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.recipes import Recipe, aug_name, parse_recipe, recipe_text
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies.finetuning import finetuning
from siamusic_fast.studies.running import PlannedStudy
from siamusic_fast.studies.slots import Devices
from siamusic_fast.studies.study import Cell, Question, Row, Study, StudyFolder, seeds_of

COLUMNS = ("Part of the recipe", "Augmentations")


def plan_ablation(
    config: AblateConfig,
    data: ShardSet,
    test: ShardSet,
    out: Path,
    devices: Devices,
    *,
    remark: str = "",
) -> PlannedStudy:
    """Return the study of the parts of the recipe `config.aug`, pre-trained on `data`.

    Its rows are the whole recipe, no augmentation, each augmentation alone and each left out; with `pairs`
    each pair, and for each of `scale` the whole recipe with all probabilities times it, at most 1. Each row
    is compared with the whole recipe. Classifiers learn from the training tracks of `test` and are scored on
    its test tracks. Raises ConfigError or DataError if anything of it does not fit, or if `out` holds
    something else.
    """
    parts = recipes(config)
    cells = tuple(
        Cell(
            row=row,
            config=config.pretraining(
                config.backbone,
                recipe_text(recipe),
                seed,
                sample_rate=data.sample_rate,
                tracks=data.tracks(["training"]),
                processes=devices.processes,
            ),
            data=data,
        )
        for row, recipe in parts.items()
        for seed in seeds_of(config.seed, config.seeds)
    )
    whole, *others = parts
    study = Study(
        kind="ablate",
        title=f"Parts of the recipe {config.aug}, with {config.backbone} pre-trained on {data.name}",
        columns=COLUMNS,
        cells=cells,
        test=test,
        finetuning={config.protocol: finetuning(config, config.protocol, devices.processes)},
        questions=tuple(
            Question(words=f"{', '.join(row)} - the whole", ours=(row,), theirs=(whole,)) for row in others
        ),
        asked="What does each part change?",
        processes=devices.processes,
        remark=remark,
    )
    return PlannedStudy.checked(study, StudyFolder(out), devices, {})


def recipes(config: AblateConfig) -> dict[Row, Recipe]:
    """Return the recipe of each row of the study, the whole recipe first.

    Raises ConfigError if there are not two augmentations, if one occurs twice, or if two factors give the
    same recipe.
    """
    whole = parse_recipe(config.aug)
    names = [aug_name(step) for step in whole]
    if len(whole) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"aug = {config.aug!r} must have two or more different augmentations for a study of its parts, "
            "such as image or mask,cutout (on the command line --aug)."
        )
    found: dict[Row, Recipe] = {("whole", config.aug): whole, ("nothing", "none"): ()}
    found |= {("alone", name): (step,) for name, step in zip(names, whole, strict=True)}
    for left_out in whole if len(whole) > 2 else ():  # without one of two, the other is alone
        found["without", aug_name(left_out)] = tuple(step for step in whole if step is not left_out)
    for pair in itertools.combinations(whole, 2) if config.pairs and len(whole) > 2 else ():
        found["pair", ",".join(map(aug_name, pair))] = pair
    for factor in config.scale or ():
        scaled = tuple(dataclasses.replace(step, p=min(1.0, round(step.p * factor, 6))) for step in whole)
        if scaled in found.values():
            raise ConfigError(
                f"scale = {factor:g} gives a recipe that the study has already: leave it out (on the "
                "command line --scale)."
            )
        found["scaled", f"all p x {factor:g}"] = scaled
    return found
