"""Every setting of the project, as frozen dataclasses that are checked when they are made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from siamusic_fast.errors import ConfigError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BACKENDS = ("dali", "torch")
CROPS = ("same", "independent")
"""Which moments of a track the two views show: the same one, as in the paper, or one each."""
SHORT_TRACKS = ("repeat", "pad")
"""What is done with tracks that are shorter than a crop: repeated, or followed by silence."""
MAX_SEED = 2**31 - 1
"""Largest seed that all random generators take."""


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value:g} must be a number above 0.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} = {value!r} is unknown: choose one of {', '.join(choices)}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed = {seed} must lie between 0 and {MAX_SEED}.")


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Mel spectrogram features of one crop. Defaults: Kim, Hong, Lee 2022, section 4; 5 s become 48 x 431."""

    sample_rate: int = 22_050
    """Of the audio, in Hz."""
    seconds: float = 5.0
    """Length of a crop."""
    n_fft: int = 512
    """Length of the FFT, in samples."""
    win_length: int | None = None
    """Length of the periodic Hann window, in samples; None: that of the FFT, as in the paper."""
    hop_length: int = 256
    """Distance of two frames, in samples."""
    n_mels: int = 48
    """Number of HTK mel bands."""
    f_max: float = 8_000.0
    """Upper edge of the highest band, in Hz."""
    floor_db: float = -100.0
    """Lowest value of the decibel scale, relative to a power of 1."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "seconds", "n_fft", "window", "hop_length", "n_mels"):
            _check_positive(name, getattr(self, name))
        if self.n_fft < self.window:
            raise ConfigError(
                f"n_fft = {self.n_fft} is shorter than the window of {self.window} samples: make win_length "
                f"shorter or n_fft longer."
            )
        if not 0 < self.f_max <= self.sample_rate / 2:
            raise ConfigError(
                f"f_max = {self.f_max:g} Hz must be above 0 and at most {self.sample_rate / 2:g} Hz, "
                f"half of the sample rate."
            )
        if self.samples <= self.n_fft // 2:
            raise ConfigError(
                f"seconds = {self.seconds:g} is too short: a crop must be longer than half a window "
                f"(n_fft = {self.n_fft} samples)."
            )

    @property
    def window(self) -> int:
        """Samples in a window."""
        return self.n_fft if self.win_length is None else self.win_length

    @property
    def samples(self) -> int:
        """Samples in a crop: 110,250 by default."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """Frames in a crop, the first and the last centred on its two ends: 431 by default."""
        return self.samples // self.hop_length + 1


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One SimSiam pre-training run. Defaults: Kim, Hong, Lee 2022, section 4."""

    mel: MelConfig = MelConfig()
    recipe: str = "image"
    """Augmentations of the two views: text that `pipelines.recipes.parse_recipe` reads."""
    backend: str = "dali"
    """What makes the views: one of `BACKENDS`."""
    backbone: str = "resnet50"
    """One of `BACKBONES`."""
    splits: tuple[str, ...] = ("training",)
    """What the encoder learns from. By default it never meets a track that a classifier is scored by."""
    epochs: int = 100
    batch_size: int = 64
    """Pairs per step and process."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("backbone", self.backbone, BACKBONES)
        _check_choice("backend", self.backend, BACKENDS)
        if not self.splits:
            raise ConfigError("splits is empty: name at least one, such as training.")
        _check_positive("epochs", self.epochs)
        _check_positive("lr", self.lr)
        _check_seed(self.seed)
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size = {self.batch_size} must be at least 2: batch norm needs two samples."
            )
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay = {self.weight_decay:g} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One classifier trained on a pre-trained backbone. Defaults: Kim, Hong, Lee 2022, section 4."""

    epochs: int = 50
    batch_size: int = 64
    """Crops per step and process."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive("epochs", self.epochs)
        _check_positive("batch_size", self.batch_size)
        _check_positive("lr", self.lr)
        _check_seed(self.seed)
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay = {self.weight_decay:g} must not be negative.")


def dump(config: MelConfig | PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Return `config` as plain values, ready for JSON and for a checkpoint."""
    return dataclasses.asdict(config)


def load_pretrain(values: dict[str, Any]) -> PretrainConfig:
    """Return the configuration that `dump` made `values` of."""
    return PretrainConfig(**{**values, "mel": MelConfig(**values["mel"]), "splits": tuple(values["splits"])})
