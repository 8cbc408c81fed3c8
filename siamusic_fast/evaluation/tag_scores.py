"""How good probabilities of tags are: ROC-AUC and PR-AUC of each tag, and their means over tags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.intervals import Array, Counts, group_weights, middle

Truths = npt.NDArray[np.bool_]
"""Whether each track has a tag, [tracks]."""

_RESAMPLES_PER_PASS = 100
"""Bootstrap samples that are scored together, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class TagScore:
    """Scores of one tag, between 0 and 1. None if no track or every track has the tag."""

    name: str
    tracks: int
    """Number of tracks with this tag."""
    roc_auc: float | None
    """Probability that a track with the tag gets a higher value than one without; 0.5 by chance."""
    pr_auc: float | None
    """Average precision; by chance the share of tracks with the tag."""


@dataclass(frozen=True, kw_only=True)
class TagScores:
    """Scores of probabilities of tags on some tracks, as the field has them for MagnaTagATune.

    ROC-AUC and PR-AUC are macro averages: the mean over the tags that some tracks have and others have not.
    """

    tracks: int
    roc_auc: float
    pr_auc: float
    chance: float
    """PR-AUC by chance: the mean share of tracks with a tag. That of ROC-AUC is 0.5."""
    tags: tuple[TagScore, ...]
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap intervals of `roc_auc` and `pr_auc`, by name."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the tags that no track or every track has, and which no mean has."""
        return tuple(tag.name for tag in self.tags if tag.roc_auc is None)


def tag_scores(
    probabilities: Tensor, truths: Tensor, names: Sequence[str], *, groups: Sequence[str] = (), seed: int = 0
) -> TagScores:
    """Compare `probabilities` of tags with `truths` of 0 and 1, both [tracks, tags].

    Any values do whose order is that of the probabilities, such as logits. Those of a repeated
    cross-validation are [repeats, tracks, tags], and the scores means over the repeats. `groups` and `seed`
    are for the intervals: the middle 95% of what comes out when the groups of tracks are drawn anew, see
    `group_weights`; by default each track is a group. A sample leaves out the tags that no or every track in
    it has.

    Raises DataError if each tag is that of no track or of every track.
    """
    aucs = _aucs(probabilities, truths)
    roc_auc, pr_auc = np.mean(list(aucs.values()), axis=0).tolist()
    counts = (truths > 0).sum(dim=0).tolist()
    resampled = resampled_aucs(probabilities, truths, groups or [""] * len(truths), seed=seed)
    return TagScores(
        tracks=len(truths),
        roc_auc=roc_auc,
        pr_auc=pr_auc,
        chance=float(np.mean([counts[tag] for tag in aucs])) / len(truths),
        tags=tuple(
            TagScore(name=name, tracks=counts[tag], roc_auc=roc, pr_auc=pr)
            for tag, name in enumerate(names)
            for roc, pr in [aucs.get(tag, (None, None))]
        ),
        intervals={name: middle(drawn) for name, drawn in resampled.items()},
    )


def macro_aucs(probabilities: Tensor, truths: Tensor) -> tuple[float, float]:
    """Return ROC-AUC and PR-AUC of `TagScores`, without intervals; arguments are those of `tag_scores`."""
    roc_auc, pr_auc = np.mean(list(_aucs(probabilities, truths).values()), axis=0).tolist()
    return roc_auc, pr_auc


def resampled_aucs(
    probabilities: Tensor, truths: Tensor, groups: Sequence[str], *, seed: int = 0
) -> dict[str, Array]:
    """Return the bootstrapped `roc_auc` and `pr_auc` of `tag_scores`, each [samples], by name.

    Samples depend on `truths`, `groups` and `seed` alone: those of two encoders can be subtracted.
    """
    weights = group_weights(groups, seed=seed).T
    of_repeats = [_resampled(list(_scored(one, truths).values()), weights) for one in _repeats(probabilities)]
    roc_auc, pr_auc = np.mean(of_repeats, axis=0)
    return {"roc_auc": roc_auc, "pr_auc": pr_auc}


def _repeats(probabilities: Tensor) -> list[Tensor]:
    """Return the probabilities [tracks, tags] of each repeat."""
    return [probabilities] if probabilities.ndim == 2 else list(probabilities)


def _scored(probabilities: Tensor, truths: Tensor) -> dict[int, tuple[Array, Truths]]:
    """Return values and truths of each tag that some tracks have and others have not, by its place.

    Raises DataError if there is none.
    """
    values, found = probabilities.double().cpu().numpy(), truths.cpu().numpy() > 0
    tracks = found.sum(axis=0)
    scored = np.flatnonzero((tracks > 0) & (tracks < len(found))).tolist()
    if not scored:
        raise DataError(
            f"each of {found.shape[1]} tags is that of no or every one of {len(found)} tracks, which leaves "
            f"nothing to be scored: pack tracks with other tags, or other splits."
        )
    return {tag: (values[:, tag], found[:, tag]) for tag in scored}


def _aucs(probabilities: Tensor, truths: Tensor) -> dict[int, tuple[float, float]]:
    """Return ROC-AUC and PR-AUC of each tag that `_scored` has, means over the repeats."""
    of_repeats = [
        {
            tag: weighted_aucs(values, found, np.ones((len(values), 1)))
            for tag, (values, found) in _scored(one, truths).items()
        }
        for one in _repeats(probabilities)
    ]
    means = {tag: np.mean([one[tag] for one in of_repeats], axis=0)[:, 0] for tag in of_repeats[0]}
    return {tag: (float(roc_auc), float(pr_auc)) for tag, (roc_auc, pr_auc) in means.items()}


def weighted_aucs(values: Array, truths: Truths, weights: Array) -> tuple[Array, Array]:
    """Return ROC-AUC and average precision, each [samples], of `values` [tracks] for `truths` [tracks].

    `weights`, [tracks, samples], say how often each sample has each track. Both are those of scikit-learn:
    the area under the ROC curve by trapezoids, and the sum of precision times gain of recall over all
    thresholds. NaN for a sample that has no track of one kind.
    """
    order = np.argsort(-values, kind="stable")
    falls = np.append(0, np.cumsum(np.diff(values[order]) != 0))  # equal values share a threshold
    ends = np.append(0, np.flatnonzero(np.append(np.diff(falls), 1)) + 1)  # tracks above each threshold
    seen = np.zeros((len(order) + 1, weights.shape[1]))
    np.cumsum(weights[order], axis=0, out=seen[1:])
    hit = np.flatnonzero(truths[order])
    thresholds, first = np.unique(falls[hit], return_index=True)  # those that a track with the tag passes
    more_hits = np.add.reduceat(weights[order[hit]], first, axis=0)
    hits = np.cumsum(more_hits, axis=0)
    seen_before, seen_then = seen[ends[thresholds]], seen[ends[thresholds + 1]]
    alarms = (seen_before + seen_then - 2 * hits + more_hits) / 2  # half of those that tie
    with np.errstate(invalid="ignore"):
        others = seen[-1] - hits[-1]
        roc_auc = (more_hits * (others - alarms)).sum(axis=0) / (hits[-1] * others)
        pr_auc = (more_hits * hits / np.maximum(seen_then, 1)).sum(axis=0) / hits[-1]
    return roc_auc, np.where(others > 0, pr_auc, np.nan)


def _resampled(places: Sequence[tuple[Array, Truths]], weights: Counts) -> Array:
    """Return the means over tags of ROC-AUC and PR-AUC, [2, samples], in samples that `weights` draw.

    `weights` are [tracks, samples]. A sample in which no tag can be scored is left out.
    """
    samples = weights.shape[1]
    sums, counts = np.zeros((2, samples)), np.zeros(samples)
    for first in range(0, samples, _RESAMPLES_PER_PASS):
        of_pass = slice(first, first + _RESAMPLES_PER_PASS)
        drawn = np.ascontiguousarray(weights[:, of_pass], dtype=np.float64)
        for values, truths in places:
            scores = np.stack(weighted_aucs(values, truths, drawn))
            counts[of_pass] += np.isfinite(scores[0])
            sums[:, of_pass] += np.nan_to_num(scores)
    means: Array = sums[:, counts > 0] / counts[counts > 0]
    return means
