"""A linear probe: logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the L2 penalty that `choose_linear` tries."""
_MAX_ITER = 500
"""Maximum number of iterations of L-BFGS, which needed fewer in all tries."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Class scores of standardized features: (x - mean) / std @ weight.T + bias."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    """Weights [classes, d], float64 like all tensors here."""
    bias: Tensor
    penalty: float
    """Strength of the L2 penalty that it was fitted with."""

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores, float64 [n, classes], of `features` [n, d]."""
        return F.linear((features.double() - self.mean) / self.std, self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable class of each row, int64 [n]."""
        return self.logits(features).argmax(dim=1)


def fit_linear(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Linear:
    """Return the minimum of mean cross-entropy + penalty / 2 |weight|^2 over standardized `features`.

    The loss is convex and the start is 0, so that the result depends on the arguments alone. A constant
    feature becomes 0.
    """
    x = features.double()
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = std.where(std > 1e-12, 1.0)
    x = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITER,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Linear(mean=mean, std=std, weight=weight.detach(), bias=bias.detach(), penalty=penalty)


def choose_linear(
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Linear:
    """Return the fit to `training` whose penalty does best on `validation`, both (features, labels).

    The best has the highest accuracy, and among equals the lowest cross-entropy.
    """
    features, labels = validation

    def rank(fit: Linear) -> tuple[float, float]:
        logits = fit.logits(features)
        accuracy = float((logits.argmax(dim=1) == labels).double().mean())
        return accuracy, -float(F.cross_entropy(logits, labels))

    return max((fit_linear(*training, classes, penalty) for penalty in penalties), key=rank)
