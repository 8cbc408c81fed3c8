"""How good a classifier is: accuracy, and recall, precision and F1 averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How one class fared; all between 0 and 1."""

    name: str
    tracks: int
    """Tracks of this class."""
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How a classifier fared on some tracks; all scores between 0 and 1.

    Recall, precision and F1 are macro averages: every class that occurs among the truths or the predictions
    counts the same. A class that occurs in neither (none of its tracks is in a small split) is left out; one
    that is predicted but has no track counts with 0.
    """

    tracks: int
    chance: float
    """Accuracy of always answering the most frequent class: 1 / classes where all have as many tracks."""
    accuracy: float
    recall: float
    precision: float
    f1: float
    classes: tuple[ClassScores, ...]
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap interval of `accuracy`, `recall`, `precision` and `f1`, by name."""
    confusion: tuple[tuple[int, ...], ...]
    """Tracks by truth (row) and prediction (column)."""


RESAMPLES = 1_000


def scores(predictions: Tensor, labels: Tensor, classes: Sequence[str], *, seed: int = 0) -> Scores:
    """Compare predicted with true class numbers, both int64 [n] with n > 0; `seed` is for the intervals."""
    n_classes = len(classes)

    def macro(metric: Any) -> float:
        return float(metric(predictions, labels, num_classes=n_classes, average="macro"))

    def per_class(metric: Any) -> list[float]:
        values: Tensor = metric(predictions, labels, num_classes=n_classes, average=None)
        return [float(value) for value in values]

    confusion = multiclass_confusion_matrix(predictions, labels, num_classes=n_classes)
    tracks = [int(count) for count in confusion.sum(dim=1)]
    rows = zip(
        classes,
        tracks,
        per_class(multiclass_recall),
        per_class(multiclass_precision),
        per_class(multiclass_f1_score),
        strict=True,
    )
    return Scores(
        tracks=len(labels),
        chance=max(tracks) / len(labels),
        accuracy=float(multiclass_accuracy(predictions, labels, num_classes=n_classes, average="micro")),
        recall=macro(multiclass_recall),
        precision=macro(multiclass_precision),
        f1=macro(multiclass_f1_score),
        classes=tuple(
            ClassScores(name=name, tracks=count, recall=recall, precision=precision, f1=f1)
            for name, count, recall, precision, f1 in rows
        ),
        intervals=bootstrap_intervals(confusion.numpy(), seed=seed),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def bootstrap_intervals(
    confusion: npt.NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return where the middle 95% of each score lie when the tracks are drawn anew, with replacement.

    This is Efron's percentile method. `confusion` [classes, classes] counts tracks by truth and prediction;
    drawing tracks is drawing their cells, from a multinomial distribution. Tracks count as independent, which
    those of one artist are not: then the true interval is wider.
    """
    tracks = int(confusion.sum())
    shares = confusion.ravel() / tracks
    drawn = np.random.default_rng(seed).multinomial(tracks, shares, size=resamples)
    found = macro_scores(drawn.reshape(resamples, *confusion.shape))
    return {
        name: (float(low), float(high))
        for name, (low, high) in ((n, np.quantile(values, (0.025, 0.975))) for n, values in found.items())
    }


def macro_scores(confusions: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the scores of each of `confusions` [n, classes, classes], as `Scores` defines them."""
    right = np.diagonal(confusions, axis1=1, axis2=2)
    truths, guesses = confusions.sum(axis=2), confusions.sum(axis=1)
    occurring = (truths + guesses > 0).sum(axis=1)
    return {
        "accuracy": right.sum(axis=1) / truths.sum(axis=1),
        "recall": (right / np.maximum(truths, 1)).sum(axis=1) / occurring,
        "precision": (right / np.maximum(guesses, 1)).sum(axis=1) / occurring,
        "f1": (2 * right / np.maximum(truths + guesses, 1)).sum(axis=1) / occurring,
    }
