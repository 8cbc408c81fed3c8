"""Classifiers of frozen features, scored on tracks that they have not learnt from, nor from their group."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.folds import FOLDS, Fold, grouped_folds
from siamusic_fast.evaluation.intervals import RESAMPLES, count_groups, mean_interval
from siamusic_fast.evaluation.knn import knn_votes
from siamusic_fast.evaluation.linear_probe import choose_linear


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Features of some tracks, and what is to be said of each."""

    features: Tensor
    """Float [n, d]."""
    targets: Tensor
    """Classes, int64 [n], or 1 and 0 for each tag, [n, outputs]."""
    groups: list[str]
    """Group of each track, such as its artist; "" is a group of its own."""
    outputs: int
    """Number of classes, or of tags."""

    def __len__(self) -> int:
        return len(self.features)

    def only(self, rows: Tensor) -> "Examples":
        """Return the examples numbered `rows`."""
        groups = [self.groups[row] for row in rows.tolist()]
        return dataclasses.replace(
            self, features=self.features[rows], targets=self.targets[rows], groups=groups
        )


Classify = Callable[[Examples, Tensor], Tensor]
"""A function from examples to learn from, and features [n, d], to probabilities [n, outputs]."""


def classify_linear(examples: Examples, features: Tensor) -> Tensor:
    """Return what a logistic regression says, whose penalty grouped cross-validation chooses."""
    fit = choose_linear(examples.features, examples.targets, examples.outputs, examples.groups)
    logits = fit.logits(features)
    return logits.softmax(dim=1) if examples.targets.ndim == 1 else logits.sigmoid()


def classify_knn(examples: Examples, features: Tensor) -> Tensor:
    """Return the weighted mean of the classes, or of the tags, of the nearest neighbors."""
    targets = examples.targets
    if targets.ndim == 1:
        targets = F.one_hot(targets, examples.outputs)
    return knn_votes(features, examples.features, targets)


def held_out(classify: Classify, examples: Examples, folds: Sequence[Fold]) -> Tensor:
    """Return the probabilities of the rows that `folds` score, float64 [n, outputs]; NaN for others."""
    found = torch.full((len(examples), examples.outputs), torch.nan, dtype=torch.float64)
    for learnt, scored in folds:
        found[scored] = classify(examples.only(learnt), examples.features[scored]).double()
    return found


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What a repeated cross-validation predicts of each track."""

    predictions: Tensor
    """Class of each track in each repeat, int64 [repeats, n]."""
    right: npt.NDArray[np.float64]
    """Share of the repeats in which each track was classified rightly, [n]."""
    groups: list[str]

    @property
    def accuracy(self) -> float:
        """Share of right predictions, averaged over tracks and repeats."""
        return float(self.right.mean())

    def interval(self, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
        """Return the 95% interval of the accuracy, resampled by groups."""
        return mean_interval(self.right, self.groups, resamples=resamples, seed=seed)


def grouped_cv(
    features: Tensor,
    labels: Tensor,
    classes: int,
    groups: Sequence[str],
    folds: int = FOLDS,
    repeats: int = 1,
    seed: int = 0,
    *,
    classify: Classify = classify_linear,
) -> CrossValidation:
    """Classify every track by a fit that has met no track of its group, in `folds` folds, `repeats` times.

    `features` are [n, d], `labels` int64 [n] of `classes` classes, and `groups` names the group of each
    track, such as its artist; "" is a group of its own. Each repeat has other folds. The penalty of the
    logistic regression, which is the default of `classify`, is chosen anew in each fold, on what it learns
    from. Two sets of features are compared with `paired_difference` of their `right`.

    Raises DataError if there are fewer than two groups, or fewer than two tracks of each class.
    """
    examples = Examples(features=features, targets=labels, groups=list(groups), outputs=classes)
    rounds = repeated_folds(labels, examples.groups, folds=folds, repeats=repeats, seed=seed)
    found = torch.stack([held_out(classify, examples, made).argmax(dim=1) for made in rounds])
    right = (found == labels).double().mean(dim=0).numpy()
    return CrossValidation(predictions=found, right=right, groups=examples.groups)


def repeated_folds(
    targets: Tensor, groups: Sequence[str], *, folds: int = FOLDS, repeats: int = 1, seed: int = 0
) -> list[list[Fold]]:
    """Return the folds of each repeat; arguments and errors are those of `grouped_cv`."""
    made = [grouped_folds(targets, groups, folds=folds, seed=seed + repeat) for repeat in range(repeats)]
    if not all(made):
        found = count_groups(groups)
        raise DataError(
            f"{len(groups)} tracks of {found} group{'s' if found > 1 else ''} cannot be cross-validated: "
            f"pack at least two groups, and two tracks of a class."
        )
    return made
