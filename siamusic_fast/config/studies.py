"""Settings of studies: grids of pre-training runs that differ in a few settings."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from siamusic_fast.config import (
    BACKBONES,
    PROTOCOLS,
    CommonConfig,
    MelConfig,
    PretrainConfig,
    from_preset,
)
from siamusic_fast.config.fields import Between, OneOf, Positive, Section
from siamusic_fast.errors import ConfigError

PRESET = "paper"
"""Way to pre-train in a study."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(CommonConfig):
    """Settings that all cells of a study share. Defaults: Kim, Hong, Lee 2022, section 4."""

    mel: MelConfig = field(default_factory=MelConfig)
    seeds: Annotated[int, Section("Study"), Positive()] = 1
    """Number of seeds. Each row of the grid has so many cells: the first with `seed`, the next ones with the
    numbers after it."""
    epochs: Annotated[int, Positive()] = 100
    """Number of epochs of each pre-training."""
    finetune_epochs: Annotated[int, Positive()] = 50
    """Number of epochs of each fine-tuning."""
    batch_size: Annotated[int, Between(2)] = 64
    """Pairs of views in a step of pre-training, and crops in a step of fine-tuning, on all GPUs of a cell
    together."""

    def pretraining(
        self, backbone: str, aug: str, seed: int, *, sample_rate: int, tracks: int, processes: int
    ) -> PretrainConfig:
        """Return the settings of one pre-training on `tracks` tracks in so many `processes`.

        There is no kNN during training, which would cost time and change no weight. Raises ConfigError if the
        batch cannot be shared evenly.
        """
        if self.batch_size % processes:
            raise ConfigError(
                f"batch_size = {self.batch_size} cannot be shared evenly by {processes} GPUs: give another "
                f"batch_size or another gpus_per_cell (on the command line --batch-size, --gpus-per-cell)."
            )
        return from_preset(
            PRESET,
            processes,
            tracks,
            mel=dataclasses.replace(self.mel, sample_rate=sample_rate),
            backbone=backbone,
            aug=aug,
            seed=seed,
            epochs=self.epochs,
            batch_size=self.batch_size // processes,
            knn_every=0,
            **self.common(),
        )

    def common(self) -> dict[str, Any]:
        """Return what each training takes over as it is: the settings of `CommonConfig` but for the seed."""
        names = {one.name for one in dataclasses.fields(CommonConfig)} - {"seed"}
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig(StudyConfig):
    """The grid of Tables 2 and 3 of Kim, Hong, Lee 2022: backbones with audio and with image augmentation."""

    backbones: Annotated[tuple[str, ...], Section("Study"), OneOf(BACKBONES)] = (
        "resnet50",
        "resnet101",
        "resnet152",
    )
    """Networks that encode a spectrogram, with commas between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbones:
            raise ConfigError("backbones is empty: name at least one, such as resnet50.")


@dataclass(frozen=True, kw_only=True)
class AblateConfig(StudyConfig):
    """What each augmentation of a recipe adds: alone, left out, in pairs, and at other probabilities."""

    aug: Annotated[str, Section("Study")] = "image"
    """Augmentations that are studied: image, audio, both, or a list such as "mask,cutout"."""
    pairs: bool = False
    """Whether each pair of augmentations is a row too."""
    scale: Annotated[tuple[float, ...] | None, Positive()] = None
    """Factors for all probabilities, such as 0.5,1.5; each is a row with the whole recipe. None: none."""
    backbone: Annotated[str, OneOf(BACKBONES)] = "resnet50"
    """Network that encodes a spectrogram."""
    protocol: Annotated[str, OneOf(PROTOCOLS)] = "clean"
    """Which classifier is kept: clean, that of the best epoch on validation; paper, that of the last one."""
