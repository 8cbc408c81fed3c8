"""The networks: a ResNet encoder for mel spectrograms, SimSiam around it, a genre classifier on top of it."""

from typing import TypeVar

import torch
import torchvision
from torch import Tensor, nn

from siamusic_fast.config import BACKBONES
from siamusic_fast.errors import ConfigError

M = TypeVar("M", bound=nn.Module)

PROJECTION_DIM = 2048
"""Width of SimSiam's output, d in Chen & He 2021, section 4.3."""
BOTTLENECK_DIM = 512
"""Width of the predictor's hidden layer: a quarter of the output, as in Chen & He 2021."""


def encoder(backbone: str) -> tuple[nn.Module, int]:
    """Return torchvision's ResNet with one input channel and no classifier, and the width of its features.

    Maps [B, 1, n_mels, frames] to [B, width]: 512 for resnet18 and resnet34, 2,048 for the deeper ones.
    Weights are random, and each residual branch starts at zero, as in Chen & He's code. The state dict has
    torchvision's names.
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"backbone = {backbone!r} is unknown: choose one of {', '.join(BACKBONES)}.")
    resnet = torchvision.models.get_model(backbone, weights=None, zero_init_residual=True)
    dim: int = resnet.fc.in_features
    resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.fc = nn.Identity()
    return resnet, dim


def projector(dim: int, projection_dim: int = PROJECTION_DIM) -> nn.Sequential:
    """Three layers, `dim` -> `dim` -> `dim` -> `projection_dim`; the last batch norm only normalises."""
    return nn.Sequential(
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, projection_dim, bias=False),
        nn.BatchNorm1d(projection_dim, affine=False),
    )


def predictor(projection_dim: int = PROJECTION_DIM, bottleneck_dim: int = BOTTLENECK_DIM) -> nn.Sequential:
    """Two layers with a bottleneck: `projection_dim` -> `bottleneck_dim` -> `projection_dim`."""
    return nn.Sequential(
        nn.Linear(projection_dim, bottleneck_dim, bias=False),
        nn.BatchNorm1d(bottleneck_dim),
        nn.ReLU(inplace=True),
        nn.Linear(bottleneck_dim, projection_dim),
    )


class SimSiam(nn.Module):
    """Siamese network of Chen & He 2021, as Kim, Hong, Lee 2022 use it on mel spectrograms."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.encoder, dim = encoder(backbone)
        self.projector = projector(dim)
        self.predictor = predictor()

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return p1, p2, z1, z2, each [B, PROJECTION_DIM], of two views [B, 1, n_mels, frames].

        The views go through one after the other, so that each has batch norm statistics of its own.
        """
        z1 = self.projector(self.encoder(view1))
        z2 = self.projector(self.encoder(view2))
        return self.predictor(z1), self.predictor(z2), z1, z2


class Classifier(nn.Module):
    """An encoder and one linear layer on its features: the projector is left behind."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        self.encoder, dim = encoder(backbone)
        self.head = nn.Linear(dim, classes)

    def forward(self, mels: Tensor) -> Tensor:
        """Return logits [B, classes] of `mels` [B, 1, n_mels, frames]."""
        logits: Tensor = self.head(self.encoder(mels))
        return logits


def place(model: M, device: torch.device) -> M:
    """Move `model` to `device` and lay its weights out channels last, and return it.

    Convolutions then keep their data in that order by themselves, which GPUs want and which, measured, saves
    a CPU 5 to 20% of a step of resnet18.
    """
    placed: M = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
