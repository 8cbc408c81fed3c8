"""Networks small enough for tests that train many times."""

from torch import nn

from siamusic_fast.config import Architecture
from siamusic_fast.models.networks import Encoder


class TinyEncoder(Encoder, nn.Sequential):
    """A small convolution with dropout, which draws random numbers."""

    def __init__(self, architecture: Architecture) -> None:
        layers = (nn.Conv2d(1, 4, 5, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.dim = 16
