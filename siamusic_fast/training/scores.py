"""How good a classifier is: accuracy, and recall, precision and F1 averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    confusion: tuple[tuple[int, ...], ...]
    """Tracks by truth (row) and prediction (column)."""


def scores(predictions: Tensor, labels: Tensor, classes: Sequence[str]) -> Scores:
    """Compare predicted with true class numbers, both int64 [n] with n > 0."""
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
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
