"""Every setting of the project, as frozen dataclasses that are checked when they are made."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siamusic_fast.errors import ConfigError, DataError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "swin_t")
BACKENDS = ("dali", "torch")
"""Engines that compute spectrograms and augmentations, the default first."""
CROPS = ("same", "independent")
"""Which moments of a track the two views show: the same one, as in the paper, or one each."""
SHORT_TRACKS = ("repeat", "pad")
"""What is done with tracks that are shorter than a crop: repeated, or followed by silence."""
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine")
PRESETS = ("paper", "simsiam")
"""Ways to pre-train, see `preset_defaults`."""
SYNC_BATCHNORM_BELOW = 64
"""Pairs per process that are too few for batch norm to see its own process's alone."""
MAX_SEED = 2**31 - 1
"""Largest seed that all random generators take."""


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value:g} must be a number above 0.")


def _check_not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value:g} must be a number that is not negative.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} = {value!r} is unknown: choose one of {', '.join(choices)}.")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 2:
        raise ConfigError(f"batch_size = {batch_size} must be at least 2: batch norm needs two samples.")


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
        if not math.isfinite(self.floor_db):
            raise ConfigError(f"floor_db = {self.floor_db:g} must be a number of decibels, such as -100.")
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
        """Frames in a crop, the first and the last centered on its two ends: 431 by default."""
        return self.samples // self.hop_length + 1


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One SimSiam pre-training run. Defaults: Kim, Hong, Lee 2022, section 4, preset `paper`."""

    mel: MelConfig = MelConfig()
    aug: str = "image"
    """Augmentations of the two views: text that `pipelines.recipes.parse_recipe` reads."""
    crops: str = CROPS[0]
    """Which moments the two views show: one of `CROPS`."""
    max_distance: float | None = None
    """Between the starts of independent crops, in seconds; None: anywhere in the track."""
    short_tracks: str = SHORT_TRACKS[0]
    """What is done with tracks that are shorter than a crop: one of `SHORT_TRACKS`."""
    backend: str = BACKENDS[0]
    """Engine that computes the views and the features of kNN: one of `BACKENDS`."""
    window: int | None = None
    """Number of shards among whose tracks the order is drawn; None: all of them."""
    backbone: str = "resnet50"
    """One of `BACKBONES`."""
    init: str | None = None
    """Weights to start from: a run, or a file with a torchvision state dict; None: random ones."""
    splits: tuple[str, ...] = ("training",)
    """What the encoder learns from. By default it never meets a track that a classifier is scored by."""
    epochs: int = 100
    batch_size: int = 64
    """Pairs per process that go through the network together, and that batch norm sees."""
    grad_accum_steps: int = 1
    """Batches whose gradients are averaged for one step of the optimizer."""
    optimizer: str = "adam"
    """One of `OPTIMIZERS`."""
    momentum: float = 0.9
    """Of SGD; Adam has none."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 1e-5
    schedule: str = "constant"
    """What the learning rate does after warming up: one of `SCHEDULES`."""
    warmup_epochs: float = 0.0
    """Time in which the learning rate rises linearly."""
    fixed_predictor_lr: bool = False
    """Whether the predictor always learns with `lr` (Chen & He 2021, section 4.2)."""
    sync_batchnorm: bool | None = None
    """Whether batch norm sees the batches of all processes; None: if they are several and below 64 pairs."""
    compile: bool | None = None
    """Whether torch.compile is used; None: on GPUs."""
    knn_every: int = 5
    """Epochs between two looks at the kNN accuracy on validation tracks, if there are labels; 0: never."""
    checkpoint_minutes: float = 15.0
    """Longest time between two checkpoints, of which there is one at the end of each epoch too."""
    seed: int = 0

    @property
    def synchronizes_batchnorm(self) -> bool:
        """Whether batch norm sees the batches of all processes, if they are several."""
        if self.sync_batchnorm is None:
            return self.batch_size < SYNC_BATCHNORM_BELOW
        return self.sync_batchnorm

    def compiles_on(self, device: str) -> bool:
        """Whether torch.compile is used on a `device` of this type: cuda or cpu."""
        return device == "cuda" if self.compile is None else self.compile

    def __post_init__(self) -> None:
        _check_choice("crops", self.crops, CROPS)
        _check_choice("short_tracks", self.short_tracks, SHORT_TRACKS)
        _check_choice("backbone", self.backbone, BACKBONES)
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_positive("grad_accum_steps", self.grad_accum_steps)
        if self.window is not None:
            _check_positive("window", self.window)
        _check_positive("checkpoint_minutes", self.checkpoint_minutes)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum = {self.momentum:g} must be at least 0 and below 1.")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(
                f"warmup_epochs = {self.warmup_epochs:g} must lie between 0 and epochs = {self.epochs}."
            )
        if self.knn_every < 0:
            raise ConfigError(f"knn_every = {self.knn_every} must not be negative; 0 is never.")
        if not self.splits:
            raise ConfigError("splits is empty: name at least one, such as training.")
        _check_positive("epochs", self.epochs)
        _check_batch_size(self.batch_size)
        _check_positive("lr", self.lr)
        _check_seed(self.seed)
        _check_not_negative("weight_decay", self.weight_decay)


PROTOCOLS = ("clean", "paper")
HEADS = ("linear", "mlp")
FEATURES = ("encoder", "projector")
CHECKPOINTS = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One classifier trained on a pre-trained backbone. Defaults: Kim, Hong, Lee 2022, section 4."""

    protocol: str = "clean"
    """Whose classifier is kept: `clean`, that of the best epoch on validation; `paper`, that of the last."""
    checkpoint: str = "last"
    """Which encoder of the run to start from: its `last`, or the `best` by kNN accuracy."""
    from_scratch: bool = False
    """Start from random weights instead: the supervised baseline."""
    freeze: bool = False
    """Leave what was pre-trained as it is, batch norm statistics included, and train the head alone."""
    head: str = "linear"
    """One of `HEADS`; `mlp` has one hidden layer."""
    features: str = "encoder"
    """What the head reads: the outputs of the `encoder`, or those of the `projector` behind it."""
    label_fraction: float = 1.0
    """Share of the labelled training tracks that are used, of each class alike; drawn with `seed`."""
    aug: str = "none"
    """Augmentations of the training crops: text that `pipelines.recipes.parse_recipe` reads."""
    backend: str = BACKENDS[0]
    """Engine that computes the features: one of `BACKENDS`."""
    epochs: int = 50
    batch_size: int = 64
    """Crops per step and process, and per pass over validation tracks."""
    lr: float = 1e-3
    """Learning rate of Adam, of the head."""
    encoder_lr: float | None = None
    """That of the encoder; by default the same."""
    layer_decay: float = 1.0
    """Each stage of the encoder learns at this factor of the rate of the stage after it."""
    weight_decay: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("protocol", self.protocol, PROTOCOLS)
        _check_choice("checkpoint", self.checkpoint, CHECKPOINTS)
        _check_choice("head", self.head, HEADS)
        _check_choice("features", self.features, FEATURES)
        _check_choice("backend", self.backend, BACKENDS)
        _check_positive("epochs", self.epochs)
        _check_positive("batch_size", self.batch_size)
        if not self.freeze:
            _check_batch_size(self.batch_size)
        _check_positive("lr", self.lr)
        _check_seed(self.seed)
        _check_not_negative("weight_decay", self.weight_decay)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay:g} must be above 0 and at most 1.")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction = {self.label_fraction:g} is a share: it must be above 0 and at most 1."
            )
        if self.encoder_lr is not None:
            _check_positive("encoder_lr", self.encoder_lr)
        if self.freeze and (self.encoder_lr is not None or self.layer_decay != 1):
            raise ConfigError(
                "A frozen encoder does not learn: leave out encoder_lr and layer_decay, or freeze."
            )


def dump(config: MelConfig | PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Return `config` as plain values, ready for JSON and for a checkpoint."""
    return dataclasses.asdict(config)


def load_pretrain(values: Mapping[str, Any]) -> PretrainConfig:
    """Return the configuration that `dump` made `values` of.

    Raises DataError if they have other fields: those of another version.
    """
    _check_fields(PretrainConfig, values)
    _check_fields(MelConfig, values["mel"])
    return PretrainConfig(**{**values, "mel": MelConfig(**values["mel"]), "splits": tuple(values["splits"])})


def _check_fields(kind: type[MelConfig] | type[PretrainConfig], values: Mapping[str, Any]) -> None:
    expected = {field.name for field in dataclasses.fields(kind)}
    found = ("unknown", values.keys() - expected), ("missing", expected - values.keys())
    words = "; ".join(f"{', '.join(sorted(names))} {which}" for which, names in found if names)
    if words:
        raise DataError(
            f"the settings of the run are those of another siamusic-fast ({words}): use the version that "
            f"wrote it."
        )


def preset_defaults(preset: str, total_batch: int) -> dict[str, Any]:
    """Return what `preset` says about a `PretrainConfig` with `total_batch` pairs per step of the optimizer.

    `paper` is Kim, Hong, Lee 2022, section 4; `simsiam` is Chen & He 2021, section 3 and 4.2. Raises
    ConfigError for another name.
    """
    _check_choice("preset", preset, PRESETS)
    if preset == "paper":
        return {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-5, "schedule": "constant"}
    return {
        "optimizer": "sgd",
        "momentum": 0.9,
        "lr": 0.05 * total_batch / 256,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "fixed_predictor_lr": True,
    }


def from_preset(preset: str, processes: int, **given: Any) -> PretrainConfig:
    """Return the configuration of `preset` on so many processes; fields that are `given` come first."""
    defaults = PretrainConfig()
    batch_size = given.get("batch_size", defaults.batch_size)
    _check_batch_size(batch_size)
    total_batch = batch_size * given.get("grad_accum_steps", defaults.grad_accum_steps) * processes
    return PretrainConfig(**{**preset_defaults(preset, total_batch), **given})
