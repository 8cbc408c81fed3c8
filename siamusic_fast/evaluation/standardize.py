"""Features centered and scaled, so that each dimension counts the same in a distance or a penalty."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""Spread of a feature, as a share of its mean, that float32 rounding alone makes."""


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature of some rows, float64 [d]; 1 for a constant feature."""

    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return `features` [n, d] less the mean, divided by the standard deviation, float64 [n, d]."""
        return (features.double() - self.mean) / self.std


def scaling_of(rows: Tensor) -> Scaling:
    """Return the scaling that gives each feature of `rows` [n, d] mean 0 and variance 1."""
    std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
    constant = std <= _ROUNDING * mean.abs()
    return Scaling(mean, std.where(~constant, 1.0))
