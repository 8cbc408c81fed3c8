"""The grid of Tables 2 and 3 of Kim, Hong, Lee 2022: image augmentation beside audio augmentation."""

from collections.abc import Sequence
from pathlib import Path

from siamusic_fast.config import PROTOCOLS
from siamusic_fast.config.studies import ReproduceConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies.finetuning import finetuning
from siamusic_fast.studies.running import Paper, PlannedStudy
from siamusic_fast.studies.slots import Devices
from siamusic_fast.studies.study import Cell, Question, Row, Study, StudyFolder, seeds_of

COLUMNS = ("Pre-trained on", "Backbone", "Augmentations")
AUGS = ("audio", "image")
"""Recipes that the paper compares, theirs first."""


def plan_reproduction(
    config: ReproduceConfig,
    corpora: Sequence[ShardSet],
    test: ShardSet,
    out: Path,
    devices: Devices,
    *,
    paper: Paper | None = None,
    remark: str = "",
) -> PlannedStudy:
    """Return the study of each backbone with audio and with image augmentation, on each of `corpora`.

    Classifiers learn from the training tracks of `test` and are scored on its test tracks, under both
    protocols. `paper` has the paper's scores by row. Raises ConfigError or DataError if anything of it does
    not fit, or if `out` holds something else.
    """
    names = [data.name for data in corpora]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two of the shard sets {', '.join(names)} have the same name: rename the folder of one, or "
            "name one of them only (on the command line --pretrain-on)."
        )
    cells = tuple(
        Cell(
            row=(data.name, backbone, aug),
            config=config.pretraining(
                backbone,
                aug,
                seed,
                sample_rate=data.sample_rate,
                tracks=data.tracks(["training"]),
                processes=devices.processes,
            ),
            data=data,
        )
        for data in corpora
        for backbone in dict.fromkeys(config.backbones)
        for aug in AUGS
        for seed in seeds_of(config.seed, config.seeds)
    )
    study = Study(
        kind="reproduce",
        title="The grid of Tables 2 and 3 of Kim, Hong, Lee 2022",
        columns=COLUMNS,
        cells=cells,
        test=test,
        finetuning={protocol: finetuning(config, protocol, devices.processes) for protocol in PROTOCOLS},
        questions=tuple(_questions(names, list(dict.fromkeys(config.backbones)))),
        asked="Does image augmentation beat audio augmentation?",
        processes=devices.processes,
        remark=remark,
    )
    return PlannedStudy.checked(study, StudyFolder(out), devices, paper or {})


def _questions(corpora: Sequence[str], backbones: Sequence[str]) -> list[Question]:
    """Return image minus audio for each corpus and backbone, for each corpus, and for the whole grid."""
    grid = [(corpus, backbone) for corpus in corpora for backbone in backbones]
    asked = [_image_minus_audio(f"{corpus}, {backbone}", [(corpus, backbone)]) for corpus, backbone in grid]
    if len(backbones) > 1:
        asked += [
            _image_minus_audio(f"{corpus}, all backbones", [one for one in grid if one[0] == corpus])
            for corpus in corpora
        ]
    if len(corpora) > 1:
        asked.append(_image_minus_audio("all", grid))
    return asked


def _image_minus_audio(words: str, places: Sequence[tuple[str, str]]) -> Question:
    theirs, ours = (tuple[Row, ...]((*place, aug) for place in places) for aug in AUGS)
    return Question(words=f"image - audio: {words}", ours=ours, theirs=theirs)
