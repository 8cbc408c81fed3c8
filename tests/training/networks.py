"""Networks small enough for tests that train many times."""

from torch import nn


def tiny_encoder(backbone: str) -> tuple[nn.Module, int]:
    """Return a small convolution with dropout, which draws random numbers, and the width of its features."""
    layers = (nn.Conv2d(1, 4, 5, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 16
