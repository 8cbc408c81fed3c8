"""A linear probe: logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siamusic_fast.evaluation.folds import FOLDS, grouped_folds
from siamusic_fast.evaluation.standardize import Scaling, scaling_of

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the L2 penalty that `choose_linear` tries."""
_WITHOUT_FOLDS = 0.1
"""The penalty where there are too few rows to choose one: the middle of `PENALTIES`."""
_TO_CHOOSE = 1e-4
"""Derivatives of the loss at which a fit is good enough to choose a penalty by: a third of the time."""
_MAX_ITER = 500
"""Maximum number of iterations of L-BFGS, which needed fewer in all tries."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Scores of classes, or of tags, from standardized features: (x - mean) / std @ weight.T + bias."""

    scaling: Scaling
    weight: Tensor
    """Weights [classes, d], float64 like all tensors here."""
    bias: Tensor
    penalty: float
    """Strength of the L2 penalty that it was fitted with."""

    def logits(self, features: Tensor) -> Tensor:
        """Return the score of each class, float64 [n, classes], of `features` [n, d]."""
        return F.linear(self.scaling(features), self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable class of each row, int64 [n]."""
        return self.logits(features).argmax(dim=1)


def fit_linear(features: Tensor, targets: Tensor, classes: int, penalty: float) -> Linear:
    """Return the minimum of the loss + penalty / 2 |weight|^2 over standardized `features` [n, d].

    `targets` are classes, int64 [n], and the loss is the mean cross-entropy; or 1 and 0 for each tag,
    [n, classes], and it is the binary cross-entropy, summed over tags and averaged over rows: a logistic
    regression of each tag. The loss is convex and the start is 0, so that the result depends on the arguments
    alone. A constant feature becomes 0.
    """
    [fit] = fit_penalties(features, targets, classes, [penalty])
    return fit


def fit_penalties(
    features: Tensor, targets: Tensor, classes: int, penalties: Sequence[float], *, gradient: float = 1e-7
) -> list[Linear]:
    """Return what `fit_linear` does for each of `penalties`, each fit from where the one before ended.

    A fit ends where no derivative of the loss is above `gradient`.
    """
    scaling = scaling_of(features)
    x, axes = scaling(features), None
    if len(x) < x.shape[1]:  # the weights lie in the span of the rows, which has fewer dimensions
        left, sizes, axes = torch.linalg.svd(x, full_matrices=False)
        x = left * sizes
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    fits = []
    for penalty in penalties:
        _minimize(x, targets, weight, bias, penalty, gradient)
        found = weight.detach().clone() if axes is None else weight.detach() @ axes
        fits.append(Linear(scaling=scaling, weight=found, bias=bias.detach().clone(), penalty=penalty))
    return fits


def choose_linear(
    features: Tensor,
    targets: Tensor,
    classes: int,
    groups: Sequence[str],
    penalties: Sequence[float] = PENALTIES,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> Linear:
    """Return the fit to all rows with the penalty that does best in a grouped cross-validation of them.

    The best has the lowest loss over all rows, each scored by a fit that has met no row of its group; see
    `grouped_folds` for `groups`, and `fit_linear` for `targets` and for the loss. Where there are too few
    rows to choose, the penalty is 0.1.
    """
    held = grouped_folds(targets, groups, folds=folds, seed=seed)
    losses = torch.zeros(len(penalties), dtype=torch.float64)
    strong_first = sorted(penalties, reverse=True)
    for learnt, scored in held:
        fits = fit_penalties(features[learnt], targets[learnt], classes, strong_first, gradient=_TO_CHOOSE)
        of_fold = [loss_of(fit.logits(features[scored]), targets[scored]) * len(scored) for fit in fits]
        losses += torch.stack(of_fold)
    best = strong_first[int(losses.argmin())] if held else _WITHOUT_FOLDS
    return fit_linear(features, targets, classes, best)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of `fit_linear`, averaged over rows."""
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    tags = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return tags / len(targets)


def _minimize(
    x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, penalty: float, gradient: float
) -> None:
    """Move `weight` and `bias` to the minimum."""
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITER,
        tolerance_grad=gradient,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(F.linear(x, weight, bias), targets) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
