"""Folds for cross-validation that leave out whole groups of tracks, such as all those of an artist."""

import warnings
from collections.abc import Sequence

import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from siamusic_fast.evaluation.intervals import group_numbers

FOLDS = 5
"""Folds of a cross-validation."""

Fold = tuple[Tensor, Tensor]
"""Numbers of the rows to learn from, and of those to score, int64."""


def grouped_folds(targets: Tensor, groups: Sequence[str], *, folds: int = FOLDS, seed: int = 0) -> list[Fold]:
    """Return folds in which each row is scored once, by a fit that has met no row of its group.

    `targets` are classes, int64 [n], of which each fold has as equal shares as its groups allow, or tags
    [n, tags], which do not count. `groups` names the group of each row; "" is a group of its own. There are
    fewer folds if there are fewer groups, or fewer rows of each class; none if there is no way to make two.
    """
    labels = targets if targets.ndim == 1 else targets.new_zeros(len(targets))
    numbers = group_numbers(groups)
    largest = int(labels.long().bincount().max())
    count = min(folds, int(numbers.max()) + 1, largest)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        found = list(splitter.split(labels, labels, numbers))
    made = ((torch.from_numpy(learnt), torch.from_numpy(scored)) for learnt, scored in found)
    return [(learnt, scored) for learnt, scored in made if len(learnt) and len(scored)]
