"""Every setting of the project, as frozen dataclasses that are checked when they are made."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from siamusic_fast.config.fields import Between, OneOf, Positive, Section, check_settings, check_value
from siamusic_fast.errors import ConfigError, DataError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "swin_t")
STEMS = ("standard", "keep-frequency", "frequency-channel")
"""First layers of an encoder: those of its paper, or ones that make time shorter and keep every mel band."""
POOLINGS = ("mean", "mean-max")
"""How an encoder makes one vector of its last features."""
CODECS = ("wav", "flac", "ogg")
"""Ways to store the audio of a shard set, which are also the endings of the audio files in a shard."""
BACKENDS = ("dali", "torch")
"""Engines that compute spectrograms and augmentations, the default first."""
CROPS = ("same", "independent")
"""Which moments of a track the two views show: the same one, as in the paper, or one each."""
SHORT_TRACKS = ("repeat", "pad")
"""What is done with tracks that are shorter than a crop: repeated, or followed by silence."""
NORMALIZATIONS = ("global", "band")
"""What shares a mean and a standard deviation: all mel bands, as in the paper, or each band has its own."""
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")
PROJECTION_DIMS = {"simsiam": 2048, "simclr": 128, "vicreg": 8192, "byol": 256}
"""Methods that pre-train an encoder, the default first, and the width of the projector's output in each: d of
Chen & He 2021, section 4.3; Chen et al. 2020, section 2.1; Bardes, Ponce, LeCun 2022, section 4.2; Grill et
al. 2020, section 3.2."""
METHODS = tuple(PROJECTION_DIMS)
PRESETS = ("music", "paper", "simsiam")
"""Ways to pre-train, the default first, see `preset_defaults`."""
SYNC_BATCHNORM_BELOW = 64
"""Batch norm of several processes is synchronized if each of them has fewer pairs in a batch."""
MAX_SEED = 2**31 - 1
"""Largest seed that all random generators take."""
NO_LOGGER = "none"
LOGGERS = ("tensorboard", "wandb", "mlflow", NO_LOGGER)
"""Trackers that get the figures of a run."""
TARGETS = ("class", "tags")
"""What a classifier learns of a track: its class, or which tags it has."""
PROTOCOLS = ("clean", "paper")
HEADS = ("linear", "mlp")
HEAD_INPUTS = ("encoder", "projector")
CHECKPOINTS = ("last", "best")
VECTOR_TYPES = ("float32", "float16")


def _check_batch_size(batch_size: int) -> None:
    """Raise ConfigError if batch norm cannot train on so few samples."""
    if batch_size < 2:
        raise ConfigError(f"batch_size = {batch_size} must be at least 2: batch norm needs two samples.")


def _check_warmup(warmup_epochs: float, epochs: int) -> None:
    if not 0 <= warmup_epochs <= epochs:
        raise ConfigError(f"warmup_epochs = {warmup_epochs:g} must lie between 0 and epochs = {epochs}.")


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Mel spectrogram features of one crop. Defaults: Kim, Hong, Lee 2022, section 4; 5 s become 48 x 431."""

    sample_rate: Annotated[int, Section("Spectrogram"), Positive()] = 22_050
    """Sample rate of the audio, in Hz."""
    seconds: Annotated[float, Positive()] = 5.0
    """Length of a crop, in seconds."""
    n_fft: Annotated[int, Positive()] = 512
    """Length of the FFT, in samples."""
    win_length: Annotated[int | None, Positive()] = None
    """Length of the periodic Hann window, in samples. None: the length of the FFT, as in the paper."""
    hop_length: Annotated[int, Positive()] = 256
    """Distance between two frames, in samples."""
    n_mels: Annotated[int, Positive()] = 48
    """Number of HTK mel bands."""
    f_max: float = 8_000.0
    """Upper edge of the highest mel band, in Hz."""
    floor_db: float = -100.0
    """Lowest value of the spectrogram, in decibels relative to a power of 1."""

    def __post_init__(self) -> None:
        check_settings(self)
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


@dataclass(frozen=True)
class Architecture:
    """What an encoder is built as; weights fit only the architecture that they were trained in.

    Its values are those of the settings with the same names. The defaults are torchvision's networks.
    """

    backbone: str
    stem: str = STEMS[0]
    pooling: str = POOLINGS[0]

    def __post_init__(self) -> None:
        check_value("backbone", self.backbone, OneOf(BACKBONES))
        check_value("stem", self.stem, OneOf(STEMS))
        check_value("pooling", self.pooling, OneOf(POOLINGS))


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Settings that pre-training and fine-tuning share."""

    backend: Annotated[str, Section("Running"), OneOf(BACKENDS)] = BACKENDS[0]
    """Engine that computes spectrograms and augmentations; torch needs no DALI."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of everything that is random."""
    checkpoint_minutes: Annotated[float, Positive()] = 15.0
    """Time between two checkpoints, in minutes. There is one more when training ends or is stopped, and in
    pre-training whenever the kNN accuracy is the best so far."""
    keep_going: bool = False
    """Whether training goes on if a checkpoint cannot be written, such as on a full disk. The last checkpoint
    stays whole, and the one at the end of training has to be written in any case."""
    logger: Annotated[tuple[str, ...], OneOf(LOGGERS)] = LOGGERS[:1]
    """Programs that get the figures, the settings and the pictures of the run, beside metrics.jsonl; several
    with commas between them."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.logger or (NO_LOGGER in self.logger and len(self.logger) > 1):
            raise ConfigError(
                f"logger = {','.join(self.logger)!r} must be names of trackers, or {NO_LOGGER} alone (on the "
                f"command line --logger {NO_LOGGER})."
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CommonConfig):
    """One pre-training run. Defaults: the preset `music`; `preset_defaults` has what the others set."""

    mel: MelConfig = MelConfig()
    splits: Annotated[tuple[str, ...], Section("Views")] = ("training",)
    """Splits whose tracks the encoder learns from, such as training,validation. A classifier is scored on
    test tracks: leave them out if it matters that the encoder has never met them."""
    aug: str = "gain"
    """Augmentations of the two views: the paper's image, audio or both; none; or a list such as "mask,cutout"
    or "cutmix(p=0.3),hflip"."""
    crops: Annotated[str, OneOf(CROPS)] = "independent"
    """Whether the two views show the same seconds of a track or independent ones."""
    max_distance: Annotated[float | None, Between(0)] = None
    """Largest distance between the starts of independent crops, in seconds, such as 1000 for anywhere in any
    shorter track. None: anywhere in the track."""
    short_tracks: Annotated[str, OneOf(SHORT_TRACKS)] = SHORT_TRACKS[0]
    """What is done with a track that is shorter than a crop: it is repeated, or padded with silence."""
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = NORMALIZATIONS[0]
    """Mean and standard deviation that normalize spectrograms: global, one of each for all mel bands; band,
    one of each for every mel band."""
    window: Annotated[int | None, Positive()] = None
    """Number of shards whose tracks are shuffled together, for disks and networks that are slow at random
    reads. None: all shards."""
    backbone: Annotated[str, Section("Network"), OneOf(BACKBONES)] = "resnet50"
    """Network that encodes a spectrogram."""
    stem: Annotated[str, OneOf(STEMS)] = "frequency-channel"
    """First layers of the network: standard, as in its paper; frequency-channel, which see the frequency of
    each mel band as a second channel (Liu et al. 2018); keep-frequency, whose strides shorten time alone, so
    that 6 rows of 48 mels are left at the end and not 2, for up to 4 times the work."""
    pooling: Annotated[str, OneOf(POOLINGS)] = POOLINGS[0]
    """How the last features become one vector: their mean; or mean-max, the mean over frequency, and of that
    the mean over time plus the maximum over time (Kong et al. 2020)."""
    method: Annotated[str, OneOf(METHODS)] = METHODS[0]
    """What the encoder learns by: simsiam (Chen & He 2021), as in the paper; simclr (Chen et al. 2020);
    vicreg (Bardes, Ponce, LeCun 2022); byol (Grill et al. 2020)."""
    projection_dim: Annotated[int | None, Positive()] = None
    """Width of the projector's output. None: that of the method's paper, 2,048, 128, 8,192 and 256."""
    temperature: Annotated[float, Positive()] = 0.1
    """Temperature of simclr's similarities (Chen et al. 2020, table 5); other methods have none."""
    init: str | None = None
    """Weights to start from: the folder of a run, or a file with a torchvision state dict. None: random
    weights."""
    sync_batchnorm: bool | None = None
    """Whether batch norm uses the batches of all processes. None: if each of several processes has fewer than
    64 pairs."""
    epochs: Annotated[int, Section("Optimization"), Positive()] = 100
    """Number of passes over the training tracks."""
    batch_size: int = 64
    """Pairs of views per process that go through the network together; batch norm sees these."""
    grad_accum_steps: Annotated[int, Positive()] = 1
    """Number of batches whose gradients are averaged for one step of the optimizer."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adam"
    """Optimizer: adam (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019) or sgd."""
    momentum: float = 0.9
    """Momentum of SGD; adam and adamw do not use it."""
    lr: Annotated[float, Positive()] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Between(0)] = 1e-5
    """Weight decay, as an L2 penalty on the weights; adamw subtracts it from them, in proportion to lr."""
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    """Schedule of the learning rate after the warm-up."""
    warmup_epochs: float = 1.0
    """Number of epochs in which the learning rate rises linearly from 0."""
    fixed_predictor_lr: bool = False
    """Whether the learning rate of the predictor stays at `lr` (Chen & He 2021, section 4.2)."""
    compile: Annotated[bool | None, Section("Running")] = None
    """Whether torch.compile is used. None: on GPUs."""
    knn_every: Annotated[int, Between(0)] = 5
    """Number of epochs between two measurements of the kNN accuracy on validation tracks; 0: none."""

    @property
    def architecture(self) -> Architecture:
        """What the encoder is built as."""
        return Architecture(self.backbone, self.stem, self.pooling)

    @property
    def width(self) -> int:
        """Width of the projector's output."""
        return self.projection_dim or PROJECTION_DIMS[self.method]

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
        super().__post_init__()
        _check_batch_size(self.batch_size)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum = {self.momentum:g} must be at least 0 and below 1.")
        _check_warmup(self.warmup_epochs, self.epochs)
        if not self.splits:
            raise ConfigError("splits is empty: name at least one, such as training.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(CommonConfig):
    """One classifier trained on a pre-trained backbone. Defaults: Kim, Hong, Lee 2022, section 4."""

    checkpoint: Annotated[str, Section("Encoder"), OneOf(CHECKPOINTS)] = "last"
    """Which encoder of the run is used: the last one, or the one with the best kNN accuracy."""
    from_scratch: bool = False
    """Whether to start from random weights instead of the run's: the supervised baseline."""
    freeze: bool = False
    """Whether the encoder stays as it is, batch norm statistics included, and the head alone is trained."""
    features: Annotated[str, OneOf(HEAD_INPUTS)] = "encoder"
    """What the head gets: the output of the encoder, or of the projector behind it."""
    head: Annotated[str, OneOf(HEADS)] = "linear"
    """Classifier on top: one linear layer, or an MLP with one hidden layer."""
    target: Annotated[str | None, Section("Training"), OneOf(TARGETS)] = None
    """What the classifier learns: the class of a track, or which tags it has. None: the class if the shards
    have two of them, else the tags."""
    protocol: Annotated[str, OneOf(PROTOCOLS)] = "clean"
    """Which classifier is kept: clean, that of the best epoch on validation; paper, that of the last one,
    which learns at one constant rate and from one crop of each track unless told otherwise."""
    label_fraction: float = 1.0
    """Fraction of the labelled training tracks that are used, the same of each class, such as 0.1."""
    aug: str = "none"
    """Augmentations of the training crops, none that mixes tracks, such as "mask,hflip,cutout"."""
    crops_per_track: Annotated[int | None, Positive()] = None
    """Number of random crops of each training track in an epoch. None: 4, or 1 with the protocol paper."""
    epochs: Annotated[int, Positive()] = 50
    """Number of passes over the training tracks."""
    batch_size: Annotated[int, Positive()] = 64
    """Crops per process and step, and per pass over validation tracks."""
    lr: Annotated[float, Positive()] = 1e-3
    """Highest learning rate of the head, with Adam."""
    encoder_lr: Annotated[float | None, Positive()] = None
    """Highest learning rate of the encoder. None: a tenth of that of the head; or all of it, from scratch and
    with the protocol paper."""
    layer_decay: float = 1.0
    """Factor between the learning rate of one stage of the encoder and that of the stage after it."""
    schedule: Annotated[str | None, OneOf(SCHEDULES)] = None
    """Schedule of all learning rates after the warm-up. None: cosine, or constant with the protocol paper."""
    warmup_epochs: float | None = None
    """Number of epochs in which the learning rates rise linearly from 0. None: 1, or 0 with the protocol
    paper."""
    weight_decay: Annotated[float, Between(0)] = 1e-5
    """Weight decay, as an L2 penalty on the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.freeze:
            _check_batch_size(self.batch_size)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay:g} must be above 0 and at most 1.")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(
                f"label_fraction = {self.label_fraction:g} is a share: it must be above 0 and at most 1."
            )
        if self.freeze and (self.encoder_lr is not None or self.layer_decay != 1):
            raise ConfigError(
                "A frozen encoder does not learn: leave out encoder_lr and layer_decay, or freeze."
            )
        if self.warmup_epochs is not None:
            _check_warmup(self.warmup_epochs, self.epochs)

    def resolved(self, target: str) -> "FinetuneConfig":
        """Return these settings with what each None means; `target` is what the shards have."""
        by_paper = self.protocol == "paper"
        values: dict[str, Any] = {
            "target": target,
            "crops_per_track": 1 if by_paper else 4,
            "encoder_lr": self.lr if by_paper or self.from_scratch else self.lr / 10,
            "schedule": "constant" if by_paper else "cosine",
            "warmup_epochs": 0.0 if by_paper else 1.0,
        }
        if self.freeze:
            del values["encoder_lr"]
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the frozen features of an encoder are scored."""

    checkpoint: Annotated[str, Section("Encoder"), OneOf(CHECKPOINTS)] = "last"
    """Which encoder of the run is used: the last one, or the one with the best kNN accuracy."""
    target: Annotated[str | None, Section("Scores"), OneOf(TARGETS)] = None
    """What the probes say of a track: its class, or which tags it has. None: the class if the shards have two
    of them, else the tags."""
    cv: Annotated[int | None, Positive()] = None
    """Number of times that all labelled tracks are scored by cross-validation in 5 folds, of whole groups
    such as artists. None: fits to the training split are scored on the test split."""
    label_curve: bool = False
    """Whether the linear probe is scored with 1, 5, 10 and 100% of the labels too."""
    retrieval_crops: Annotated[int | None, Between(2)] = None
    """Number of crops of each test track that are compared with each other. None: from 2 to 20, so that there
    are about 1,000 in all."""
    backend: Annotated[str, Section("Running"), OneOf(BACKENDS)] = BACKENDS[0]
    """Engine that computes spectrograms; torch needs no DALI."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of the folds and the intervals; the random encoders have that of the run."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Where crops are cut from a track that a trained network is to hear."""

    crops: Annotated[int | None, Section("Crops"), Positive()] = None
    """Number of crops of each track, evenly spaced. None: as many as cover it, up to 128."""
    hop_seconds: Annotated[float | None, Positive()] = None
    """Seconds between the starts of two crops, in place of a number of crops. None: evenly spaced ones."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.crops is not None and self.hop_seconds is not None:
            raise ConfigError(
                f"crops = {self.crops} and hop_seconds = {self.hop_seconds:g} exclude each other: give one "
                f"of them."
            )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(CropConfig):
    """What is written of each track that an encoder hears."""

    per_crop: bool = False
    """Whether each crop has a row of its own, with its start, and not each track."""
    dtype: Annotated[str, Section("File"), OneOf(VECTOR_TYPES)] = VECTOR_TYPES[0]
    """Type of the numbers; float16 takes half of the space."""
    checkpoint: Annotated[str, Section("Encoder"), OneOf(CHECKPOINTS)] = "last"
    """Which encoder of the run is used: the last one, or the one with the best kNN accuracy."""


def dump(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain values, ready for JSON and for a checkpoint."""
    return dataclasses.asdict(config)


def load_pretrain(values: Mapping[str, Any]) -> PretrainConfig:
    """Return the configuration that `dump` made `values` of.

    Raises DataError if they have other fields: those of another version.
    """
    _check_fields(PretrainConfig, values)
    _check_fields(MelConfig, values["mel"])
    words = {name: tuple(values[name]) for name in ("splits", "logger")}
    return PretrainConfig(**{**values, **words, "mel": MelConfig(**values["mel"])})


def _check_fields(kind: type[MelConfig] | type[PretrainConfig], values: Mapping[str, Any]) -> None:
    expected = {field.name for field in dataclasses.fields(kind)}
    found = ("unknown", values.keys() - expected), ("missing", expected - values.keys())
    words = "; ".join(f"{', '.join(sorted(names))} {which}" for which, names in found if names)
    if words:
        raise DataError(
            f"the settings of the run are those of another siamusic-fast ({words}): use the version that "
            f"wrote it."
        )


_PAPER: dict[str, Any] = {
    "aug": "image",
    "crops": "same",
    "max_distance": None,
    "normalization": "global",
    "stem": "standard",
    "pooling": "mean",
    "optimizer": "adam",
    "momentum": 0.9,
    "lr": 1e-4,
    "weight_decay": 1e-5,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "fixed_predictor_lr": False,
}
_SIMSIAM = {"optimizer": "sgd", "weight_decay": 1e-4, "schedule": "cosine", "fixed_predictor_lr": True}


def preset_defaults(preset: str, total_batch: int) -> dict[str, Any]:
    """Return the fields of `PretrainConfig` that `preset` sets, for `total_batch` pairs per step.

    `music` is this project's own and has the defaults of `PretrainConfig`. `paper` is Kim, Hong, Lee 2022,
    section 4; the paper does not state its learning rate, and with the one here the encoder's features do not
    collapse to a few dimensions. `simsiam` is the optimizer of Chen & He 2021, sections 3 and 4.2, with the
    rest of `paper`. Raises ConfigError for another name.
    """
    check_value("preset", preset, OneOf(PRESETS))
    if preset == "music":
        return {name: getattr(PretrainConfig, name) for name in _PAPER}
    of_authors = {"lr": 0.05 * total_batch / 256, **_SIMSIAM} if preset == "simsiam" else {}
    return {**_PAPER, **of_authors}


def from_preset(preset: str, processes: int, tracks: int, **given: Any) -> PretrainConfig:
    """Return the configuration of `preset` on so many processes; fields that are `given` come first.

    A learning rate that follows the batch follows the batch that is trained on: at most the `tracks` that a
    process gets.
    """
    defaults = PretrainConfig()
    batch_size = given.get("batch_size", defaults.batch_size)
    _check_batch_size(batch_size)
    batch_size = min(batch_size, max(1, tracks // processes))
    total_batch = batch_size * given.get("grad_accum_steps", defaults.grad_accum_steps) * processes
    return PretrainConfig(**{**preset_defaults(preset, total_batch), **given})
