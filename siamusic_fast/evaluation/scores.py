"""How good a classifier is: accuracy, and recall, precision and F1 averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from siamusic_fast.evaluation.intervals import RESAMPLES, group_draws, middle

Array = npt.NDArray[np.float64]
Confusion = npt.NDArray[np.int64]
"""Tracks by truth (row) and prediction (column), [..., classes, classes]."""


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
    """95% bootstrap intervals of `accuracy`, `recall`, `precision` and `f1`, by name; of whole groups of
    tracks where groups are known."""
    confusion: tuple[tuple[float, ...], ...]
    """Tracks by truth (row) and prediction (column); means over the repeats if there are several."""


def scores(
    predictions: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Scores:
    """Compare predicted with true class numbers, both int64 [n] with n > 0.

    Predictions of a repeated cross-validation are [repeats, n], and the scores those of all repeats together.
    `groups` and `seed` are for the intervals, see `bootstrap_intervals`.
    """
    n = len(classes)
    cells = (labels * n + predictions).cpu().numpy()
    repeats = cells.size // len(labels)
    confusion = np.bincount(cells.ravel(), minlength=n * n).reshape(n, n)
    tracks = labels.bincount(minlength=n).tolist()
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
        intervals=bootstrap_intervals(cells, n, groups, seed=seed),
        confusion=tuple(tuple(row) for row in (confusion / repeats if repeats > 1 else confusion).tolist()),
    )


def bootstrap_intervals(
    cells: Confusion,
    classes: int,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the middle 95% of each score when the groups of tracks are drawn anew, with replacement.

    `cells` [n] is the cell of the confusion matrix that each track is counted in: truth x `classes` +
    prediction; [repeats, n] if each track is predicted several times. `groups` names the group of each track,
    such as its artist, and tracks of one group are drawn together; "" is a group of its own. None: tracks
    count as independent, which those of one artist are not, so that the true interval is wider.
    """
    rows = np.atleast_2d(cells)
    drawn = [
        np.bincount(rows.ravel(), np.tile(weights, len(rows)), classes * classes).reshape(classes, classes)
        for weights in group_draws(groups or [""] * rows.shape[1], resamples=resamples, seed=seed)
    ]
    return {name: middle(values) for name, values in macro_scores(np.stack(drawn)).items()}


def macro_scores(confusion: Confusion | Array) -> dict[str, Array]:
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


def class_scores(confusion: Confusion | Array) -> dict[str, Array]:
    """Return `recall`, `precision` and `f1`, each [..., classes]; 0 for a class that never occurs."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    truths, predictions = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return {
        "recall": right / np.maximum(truths, 1),
        "precision": right / np.maximum(predictions, 1),
        "f1": 2 * right / np.maximum(truths + predictions, 1),
    }
