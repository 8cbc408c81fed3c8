"""The networks: an encoder of mel spectrograms, and a genre classifier on top of it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, SwinTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

from siamusic_fast.config import METHODS, PROJECTION_DIMS, TARGETS, Architecture, CropConfig
from siamusic_fast.embedding.results import Audible, Embeddings, Listening, Predictions
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.heads import projector
from siamusic_fast.models.precision import autocast
from siamusic_fast.progress import SILENT, Progress

M = TypeVar("M", bound=nn.Module)

HIDDEN_DIM = 512
"""Width of the hidden layer of a classifier's head, if it has one."""

RANDOM_DEPTH = ("swin_t",)
"""Backbones that draw for each track which blocks it skips while they learn (stochastic depth)."""


class Encoder(nn.Module):
    """A pre-trained encoder of mel spectrograms; `load_encoder` returns one.

        encoder = siamusic_fast.load_encoder("runs/first", device="cuda")
        vectors = encoder.embed(["song.mp3", "folder/"]).vectors  # [tracks, encoder.dim]

    `embed` hears audio files, shard sets and waveforms. `encoder(mels)` maps float32 [B, 1, n_mels, frames]
    to [B, dim], with gradients. The spectrograms must be those of `encoder.frontend`, with any number of
    frames: normalized log-mels, as the loaders compute them.

    It is torchvision's ResNet or Swin Transformer of the same name with one input channel, and with an
    identity in place of the last layer (`fc`, or `head` of swin_t). So its state dict has the names that
    torchvision's has, its layers are attributes such as `encoder.layer4`, and a classifier is made by
    `encoder.fc = nn.Linear(encoder.dim, 10)`. It is in evaluation mode; `encoder.train()` ends that.
    With the stem frequency-channel the weights of the first layer have two input channels. Other strides in
    the stem and another pooling, if the run had them, have no weights.
    """

    architecture: Architecture
    """Names of the network, such as resnet50, of its stem and of its pooling."""
    dim: int
    """Number of features of a spectrogram."""
    frontend: Frontend
    """Settings and statistics of the mel spectrograms that the encoder was trained on."""
    epoch: int
    """Epochs of pre-training behind these weights."""

    if TYPE_CHECKING:

        def __call__(self, mels: Tensor) -> Tensor: ...

    def embed(
        self,
        source: Audible,
        *,
        sample_rate: int | None = None,
        splits: Sequence[str] | None = None,
        crops: int | None = None,
        hop_seconds: float | None = None,
        per_crop: bool = False,
        progress: Progress = SILENT,
    ) -> Embeddings:
        """Return the features of every track of `source`, averaged over crops, or those of each crop.

        A track is resampled, mixed to mono and rounded to 16 bits as when it is packed, and its crops become
        spectrograms of `frontend`. So its features are those that `probe` computes of it. A track that is
        shorter than a crop is repeated or padded, as in training. The encoder is in evaluation mode while it
        works, and no gradients are kept.

        Args:
            source: A path or a name, or several: shard sets, audio files of any format, folders or zips of
                audio, or "@list.txt" with a source on each line. Or an open `ShardSet`. Or waveforms, float
                [samples] or [B, samples] with a full scale of 1. Or mels, float32 [B, 1, n_mels, frames].
            sample_rate: Sample rate of the waveforms in Hz.
            splits: Splits of the shard sets; by default all.
            crops: Number of crops of each track, evenly spaced. None: as many as cover it, up to 128.
            hop_seconds: Seconds between the starts of two crops, in place of a number of crops.
            per_crop: Whether each crop is a row of the result, with its start, and not each track.
            progress: Shows how many tracks are done.

        Raises:
            ConfigError: An argument cannot be, or mels are not those of `frontend`.
            DataError: A source is not there, no file of it can be used, or a shard is damaged.

        """
        listening = listening_of(self, CropConfig(crops=crops, hop_seconds=hop_seconds), per_crop=per_crop)
        with evaluating(self):
            table, vectors = listening.hear(source, sample_rate, splits, progress)
        return Embeddings(**table, vectors=vectors)


def encoder(architecture: Architecture) -> Encoder:
    """Return an encoder that maps [B, 1, n_mels, frames], of any size, to [B, dim]; its weights are random.

    `dim` is 512 for resnet18 and resnet34, 2,048 for the deeper ones, 768 for swin_t.
    """
    kind = _SwinEncoder if architecture.backbone == "swin_t" else _ResNetEncoder
    model = kind(architecture)
    model.architecture = architecture
    if architecture.pooling == "mean-max":
        model.avgpool = _MeanMax()
    return model


class _MeanMax(nn.Module):
    """Pools [B, C, rows, columns] to [B, C] as PANNs do (Kong et al. 2020, `Cnn14` of their code).

    The mean over frequency, and of that the mean over time plus the maximum over time.
    """

    def forward(self, features: Tensor) -> Tensor:
        over_time = features.mean(dim=2)
        return over_time.mean(dim=2) + over_time.amax(dim=2)


class _ResNetEncoder(Encoder, ResNet):  # type: ignore[misc]
    """A ResNet whose residual branches each start at zero, as in Chen & He's code."""

    fc: Any

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(*_RESNETS[architecture.backbone], zero_init_residual=True)
        self.dim = self.fc.in_features
        stride = (1, 2) if architecture.stem == "keep-frequency" else (2, 2)
        channels = input_channels(architecture)
        self.conv1 = _Conv(channels, 64, kernel_size=7, stride=stride, padding=3, bias=False)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=stride, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Identity()


def input_channels(architecture: Architecture) -> int:
    """Return the channels that the first layer sees: the spectrogram, and with some stems the frequency."""
    return 2 if architecture.stem == "frequency-channel" else 1


class _Conv(nn.Conv2d):
    """A convolution that may have, besides the spectrogram, the frequency of each mel band as a channel.

    The frequency rises from -1 at the lowest band to 1 at the highest (CoordConv, Liu et al. 2018): what a
    convolution finds does not tell in which band it is.
    """

    def forward(self, image: Tensor) -> Tensor:
        if self.in_channels > 1:
            frequency = torch.linspace(-1, 1, image.shape[2], device=image.device, dtype=image.dtype)
            image = torch.cat([image, frequency.view(1, 1, -1, 1).expand_as(image)], dim=1)
        return super().forward(image)


_RESNETS = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
"""Kind of block and number of blocks in each stage (He et al. 2016, table 1)."""


class _SwinEncoder(Encoder, SwinTransformer):  # type: ignore[misc]
    """The Swin-T of Liu et al. 2021 with windows that fit the paper's features.

    48 x 431 mels become 12 x 108 patches of 4 x 4. Windows of 6 x 9 tile these without a remainder, and the
    6 x 54 patches of the second stage too. With the original's 7 x 7, a sixth would be padding. With the stem
    keep-frequency, there is a row of patches at each of the 48 mels, and they overlap.
    """

    features: Any
    head: Any

    def __init__(self, architecture: Architecture) -> None:
        width = 96
        super().__init__(
            patch_size=[4, 4],
            embed_dim=width,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=[6, 9],
            stochastic_depth_prob=0.2,
        )
        self.dim = self.head.in_features
        stride = (1, 4) if architecture.stem == "keep-frequency" else (4, 4)
        self.features[0][0] = _Patches(input_channels(architecture), width, kernel_size=(4, 4), stride=stride)
        self.head = nn.Identity()


class _Patches(_Conv):
    """Cuts an image into patches. The last ones are filled up with 0, the mean color."""

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (
            size - stride + -extent % stride
            for extent, size, stride in zip(image.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return super().forward(F.pad(image, (0, columns, 0, rows)))


STAGES = 5
"""Number of stages of an encoder: the stem, then four stages of blocks."""


def stage(name: str) -> int:
    """Return the stage, from 0 to 4, of the encoder's parameter `name`."""
    top, *rest = name.split(".")
    if top.startswith("layer"):
        return int(top.removeprefix("layer"))
    if top == "features":
        return (int(rest[0]) + 1) // 2  # 0 makes the patches; from 1 on, blocks and mergings alternate
    return {"conv1": 0, "bn1": 0, "norm": STAGES - 1}[top]


class Classifier(nn.Module):
    """An encoder with a head on its features: one linear layer, or an `mlp` with one hidden layer.

    With `features="projector"`, the projector of the pre-training `method`, with outputs of `width`, is
    between them. `load_classifier` returns a classifier that was trained:

        classifier = siamusic_fast.load_classifier("runs/first")
        heard = classifier.predict("folder/")
        print(heard.paths[0], heard.top(3)[0])  # song.mp3 [("Rock", 0.71), ("Punk", 0.12), ("Pop", 0.05)]

    `classifier(mels)` maps float32 [B, 1, n_mels, frames] to logits [B, classes]. If its `target` is tags,
    the classes are the tags, of which a track has any number: each has a probability of its own.
    """

    classes: tuple[str, ...]
    """Names of the classes or tags, in the order of the logits."""
    target: str
    """What it says of a track: `class` or `tags`."""
    frontend: Frontend
    """Settings and statistics of the mel spectrograms that the classifier was trained on."""
    epoch: int
    """Epochs of fine-tuning behind these weights."""

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        *,
        head: str = "linear",
        features: str = "encoder",
        target: str = TARGETS[0],
        method: str = METHODS[0],
        width: int = PROJECTION_DIMS[METHODS[0]],
    ) -> None:
        super().__init__()
        self.target = target
        self.encoder = encoder(architecture)
        self.projector: nn.Module = nn.Identity()
        dim = self.encoder.dim
        if features == "projector":
            self.projector = projector(method, dim, width)
            dim = width
        self.head = nn.Linear(dim, classes) if head == "linear" else _mlp(dim, classes)

    @property
    def body(self) -> tuple[nn.Module, nn.Module]:
        """The parts that were pre-trained: encoder and projector."""
        return self.encoder, self.projector

    def forward(self, mels: Tensor) -> Tensor:
        """Return logits [B, classes] of `mels` [B, 1, n_mels, frames]."""
        logits: Tensor = self.head(self.projector(self.encoder(mels)))
        return logits

    def probabilities(self, mels: Tensor) -> Tensor:
        """Return probabilities [B, classes] of `mels` [B, 1, n_mels, frames]: softmax, or sigmoid of tags."""
        probabilities: Tensor = self.last(self(mels))
        return probabilities

    @property
    def last(self) -> nn.Module:
        """What makes probabilities of logits."""
        return nn.Sigmoid() if self.target == "tags" else nn.Softmax(dim=1)

    def predict(
        self,
        source: Audible,
        *,
        sample_rate: int | None = None,
        splits: Sequence[str] | None = None,
        crops: int | None = None,
        hop_seconds: float | None = None,
        per_crop: bool = False,
        progress: Progress = SILENT,
    ) -> Predictions:
        """Return the probabilities of the classes, or tags, for every track of `source`, or for each crop.

        Those of a track are the mean over its crops, as in `evaluate`. Arguments and errors are those of
        `Encoder.embed`.
        """
        listening = listening_of(self, CropConfig(crops=crops, hop_seconds=hop_seconds), per_crop=per_crop)
        with evaluating(self):
            table, probabilities = listening.hear(source, sample_rate, splits, progress)
        return Predictions(**table, classes=self.classes, target=self.target, probabilities=probabilities)


def _mlp(dim: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, HIDDEN_DIM), nn.ReLU(inplace=True), nn.Linear(HIDDEN_DIM, classes))


def listening_of(model: Encoder | Classifier, config: CropConfig, *, per_crop: bool = False) -> Listening:
    """Return how `model` hears audio: an encoder says features, a classifier probabilities."""
    device = next(model.parameters()).device

    def network(mels: Tensor) -> Tensor:
        with autocast(device):
            return model.probabilities(mels) if isinstance(model, Classifier) else model(mels)

    return Listening(
        network=network, frontend=model.frontend, device=device, config=config, per_crop=per_crop
    )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers of `model`, in hexadecimal digits."""
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(name.encode())
        sha256.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return sha256.hexdigest()


def place(model: M, device: torch.device) -> M:
    """Move `model` to `device`, with weights in the memory format channels last, and return it.

    Convolutions then keep their data in this format, which is faster: a step of resnet18 takes 5 to 20% less
    time on a CPU, as measured.
    """
    placed: M = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode in this context; then each part of it returns to the mode it had."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
