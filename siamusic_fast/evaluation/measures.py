"""Measures of features of every kind, with intervals, and the difference to the strongest baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.evaluation.baselines import PRETRAINED
from siamusic_fast.evaluation.cross_validation import Classify, Examples, classify_linear, held_out
from siamusic_fast.evaluation.features import CropFeatures
from siamusic_fast.evaluation.folds import Fold
from siamusic_fast.evaluation.intervals import Array, Difference, count_groups, middle, resampled_means
from siamusic_fast.evaluation.retrieval import retrieval
from siamusic_fast.evaluation.tag_scores import macro_aucs, resampled_aucs

LABEL_FRACTIONS = (0.01, 0.05, 0.1, 1.0)
"""Fractions of the labels that a curve of label efficiency has."""
DRAWS = 5
"""How often a fraction of the labels is drawn."""

_WORDS = {"accuracy": "", "roc_auc": " ROC-AUC", "pr_auc": " PR-AUC"}
"""What the title of a probe says of its score."""

Measured = tuple[float, Array]
"""A score, and what it is in each bootstrap sample."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of all features, and whether those of the pre-trained encoder are above the others."""

    name: str
    title: str
    values: dict[str, float]
    """Value by the name of the features, the pre-trained encoder's first."""
    intervals: dict[str, tuple[float, float]]
    """95% intervals, resampled by group."""
    strongest: str
    """Name of the baseline with the highest value."""
    difference: Difference
    """Value of the pre-trained encoder less that of the strongest baseline, paired."""
    items: int
    """Number of tracks, or of crops, that are scored."""
    groups: int
    """Number of groups that they are resampled by; an item whose group is unknown is one of its own."""


@dataclass(frozen=True, kw_only=True)
class LabelPoint:
    """The linear probe with a fraction of the labels."""

    fraction: float
    labels: int
    """Number of tracks that it learns from; with cross-validation, in the first fold."""
    measure: Measure


def compared(
    name: str, title: str, found: Mapping[str, Measured], groups: Sequence[str], items: int
) -> Measure:
    """Return the measure of all features, and the paired difference to the strongest baseline."""
    strongest = max((one for one in found if one != PRETRAINED), key=lambda one: found[one][0])
    (ours, of_ours), (theirs, of_theirs) = found[PRETRAINED], found[strongest]
    low, high = middle(of_ours - of_theirs)
    count = count_groups(groups)
    return Measure(
        name=name,
        title=title,
        values={one: value for one, (value, _) in found.items()},
        intervals={one: middle(samples) for one, (_, samples) in found.items()},
        strongest=strongest,
        difference=Difference(difference=ours - theirs, low=low, high=high, groups=count),
        items=items,
        groups=count,
    )


def retrieval_measures(crops: Mapping[str, CropFeatures], seed: int = 0) -> list[Measure]:
    """Return how well crops find those of their track, and of their artist, by features of every kind.

    `crops` has features of the same crops by name, `pretrained` among them. What no crop can find is left
    out, such as tracks of the same artist where no groups are known.
    """
    found = {name: retrieval(one.features, one.names, one.groups, one.starts) for name, one in crops.items()}
    first = found[PRETRAINED]
    measures = []
    if groups := first.same_track_groups:
        of_track = {
            name: (one.r_at_1, resampled_means(one.same_track, groups, seed=seed))
            for name, one in found.items()
        }
        measures.append(compared("same_track", "track R@1", of_track, groups, len(groups)))
    if groups := first.same_artist_groups:
        of_artist = {
            name: (one.map, resampled_means(one.same_artist, groups, seed=seed))
            for name, one in found.items()
        }
        measures.append(compared("same_artist", "artist mAP", of_artist, groups, len(groups)))
    return measures


def scored_rows(rounds: Sequence[Sequence[Fold]]) -> Tensor:
    """Return the numbers of the tracks that every repeat scores."""
    return torch.cat([scored for _, scored in rounds[0]]).sort().values


def probabilities(classify: Classify, examples: Examples, rounds: Sequence[Sequence[Fold]]) -> Tensor:
    """Return the probabilities of the scored tracks in each repeat, [repeats, tracks, outputs]."""
    return torch.stack([held_out(classify, examples, folds) for folds in rounds])[:, scored_rows(rounds)]


def measured(found: Tensor, scored: Examples, seed: int) -> dict[str, Measured]:
    """Return accuracy, or ROC-AUC and PR-AUC of tags, averaged over the repeats of `found`."""
    if scored.targets.ndim == 1:
        right = (found.argmax(dim=2) == scored.targets).double().mean(dim=0).numpy()
        return {"accuracy": (float(right.mean()), resampled_means(right, scored.groups, seed=seed))}
    roc_auc, pr_auc = macro_aucs(found, scored.targets)
    samples = resampled_aucs(found, scored.targets, scored.groups, seed=seed)
    return {"roc_auc": (roc_auc, samples["roc_auc"]), "pr_auc": (pr_auc, samples["pr_auc"])}


def probe_measures(found: Mapping[str, Mapping[str, Tensor]], scored: Examples, seed: int) -> list[Measure]:
    """Return the measures of both probes."""
    measures = []
    for probe_name, title in (("knn", "kNN"), ("linear", "linear")):
        by_name = {name: measured(one[probe_name], scored, seed) for name, one in found.items()}
        measures += [
            compared(
                probe_name if score == "accuracy" else f"{probe_name}_{score}",
                title + _WORDS[score],
                {name: one[score] for name, one in by_name.items()},
                scored.groups,
                len(scored),
            )
            for score in by_name[PRETRAINED]
        ]
    return measures


def label_curve(
    examples: Mapping[str, Examples], rounds: Sequence[Sequence[Fold]], seed: int
) -> tuple[LabelPoint, ...]:
    """Return the linear probe with each of `LABEL_FRACTIONS`, which is drawn several times and averaged."""
    targets = examples[PRETRAINED].targets
    scored = examples[PRETRAINED].only(scored_rows(rounds))
    points = []
    for fraction in LABEL_FRACTIONS:
        draws = [
            [(learnt[_fraction(targets[learnt], fraction, seed + draw)], held) for learnt, held in folds]
            for draw in range(DRAWS if fraction < 1 else 1)
            for folds in rounds
        ]
        by_name = {
            name: measured(probabilities(classify_linear, one, draws), scored, seed)
            for name, one in examples.items()
        }
        score = next(iter(by_name[PRETRAINED]))
        found = {name: one[score] for name, one in by_name.items()}
        points.append(
            LabelPoint(
                fraction=fraction,
                labels=len(draws[0][0][0]),
                measure=compared("linear", f"linear{_WORDS[score]}", found, scored.groups, len(scored)),
            )
        )
    return tuple(points)


def _fraction(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Return the numbers of a fraction of the rows of each class, at least one; of tags, of all rows."""
    labels = targets.numpy() if targets.ndim == 1 else np.zeros(len(targets), np.int64)
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[
            : max(1, round(fraction * int((labels == label).sum())))
        ]
        for label in np.unique(labels)
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
