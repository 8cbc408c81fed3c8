"""How good a classifier is: accuracy, and recall, precision and F1 averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
Confusion = npt.NDArray[np.int64]
"""Tracks by truth (row) and prediction (column), [..., classes, classes]."""

RESAMPLES = 1_000
"""Bootstrap samples behind an interval."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of one class, all between 0 and 1."""

    name: str
    tracks: int
    """Number of tracks of this class."""
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a classifier on some tracks, all between 0 and 1.

    Recall, precision and F1 are macro averages: the mean over all classes that occur among the truths or the
    predictions. A class that occurs in neither is left out; one that is predicted but has no track counts
    with 0.
    """

    tracks: int
    chance: float
    """Accuracy of always predicting the most frequent class."""
    accuracy: float
    recall: float
    precision: float
    f1: float
    classes: tuple[ClassScores, ...]
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap intervals of `accuracy`, `recall`, `precision` and `f1`, by name."""
    confusion: tuple[tuple[int, ...], ...]
    """Tracks by truth (row) and prediction (column)."""


def scores(predictions: Tensor, labels: Tensor, classes: Sequence[str], *, seed: int = 0) -> Scores:
    """Compare predicted with true class numbers, both int64 [n] with n > 0; `seed` is for the intervals."""
    n = len(classes)
    confusion = torch.bincount(labels * n + predictions, minlength=n * n).view(n, n).cpu().numpy()
    tracks = confusion.sum(axis=1).tolist()
    by_class = {name: values.tolist() for name, values in class_scores(confusion).items()}
    return Scores(
        tracks=len(labels),
        chance=max(tracks) / len(labels),
        **{name: float(value) for name, value in macro_scores(confusion).items()},
        classes=tuple(
            ClassScores(
                name=name, tracks=tracks[place], **{score: found[place] for score, found in by_class.items()}
            )
            for place, name in enumerate(classes)
        ),
        intervals=bootstrap_intervals(confusion, seed=seed),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def bootstrap_intervals(
    confusion: Confusion, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the middle 95% of each score when the tracks are drawn anew, with replacement.

    This is Efron's percentile method. Drawing tracks is drawing cells of `confusion` [classes, classes], from
    a multinomial distribution. Tracks count as independent, which those of one artist are not: then the true
    interval is wider.
    """
    tracks = int(confusion.sum())
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(tracks, confusion.ravel() / tracks, size=resamples)
    intervals = {}
    for name, values in macro_scores(drawn.reshape(resamples, *confusion.shape)).items():
        low, high = np.quantile(values, (0.025, 0.975))
        intervals[name] = (float(low), float(high))
    return intervals


def macro_scores(confusion: Confusion) -> dict[str, Array]:
    """Return accuracy and the macro averages that `Scores` describes, each [...]."""
    occurs = confusion.sum(axis=-1) + confusion.sum(axis=-2) > 0
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return {
        "accuracy": right / confusion.sum(axis=(-2, -1)),
        **{
            name: values.sum(axis=-1) / occurs.sum(axis=-1)
            for name, values in class_scores(confusion).items()
        },
    }


def class_scores(confusion: Confusion) -> dict[str, Array]:
    """Return `recall`, `precision` and `f1`, each [..., classes]; 0 for a class that never occurs."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    truths, predictions = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return {
        "recall": right / np.maximum(truths, 1),
        "precision": right / np.maximum(predictions, 1),
        "f1": 2 * right / np.maximum(truths + predictions, 1),
    }
