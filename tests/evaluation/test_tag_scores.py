import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.tag_scores import tag_scores, weighted_aucs


def some(tracks: int = 120, tags: int = 5) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return probabilities with ties that know a little of the tags, the tags, and their names."""
    rng = np.random.default_rng(0)
    truths = rng.random((tracks, tags)) < np.linspace(0.05, 0.6, tags)
    probabilities = np.round(rng.random((tracks, tags)) + 0.3 * truths, 1) / 1.3
    return torch.from_numpy(probabilities), torch.from_numpy(truths).to(torch.uint8), list("abcde")[:tags]


def test_scores_are_those_of_scikit_learn() -> None:
    probabilities, truths, names = some()
    found = tag_scores(probabilities, truths, names)
    given = truths.numpy(), probabilities.numpy()
    assert found.roc_auc == pytest.approx(roc_auc_score(*given, average="macro"))
    assert found.pr_auc == pytest.approx(average_precision_score(*given, average="macro"))
    for place, tag in enumerate(found.tags):
        assert (tag.name, tag.tracks) == (names[place], int(truths[:, place].sum()))
        of_tag = truths[:, place].numpy(), probabilities[:, place].numpy()
        assert tag.roc_auc == pytest.approx(roc_auc_score(*of_tag))
        assert tag.pr_auc == pytest.approx(average_precision_score(*of_tag))
    assert found.chance == pytest.approx(truths.double().mean().item())
    for name in ("roc_auc", "pr_auc"):
        low, high = found.intervals[name]
        assert low < getattr(found, name) < high
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_scores_of_repeats_are_the_means_of_theirs() -> None:
    probabilities, truths, names = some(tracks=60, tags=3)
    others = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = (tag_scores(one, truths, names) for one in (probabilities, others))
    both = tag_scores(torch.stack([probabilities, others]), truths, names)
    assert both.tracks == 60
    assert both.roc_auc == pytest.approx((first.roc_auc + second.roc_auc) / 2)
    assert both.tags[1].tracks == first.tags[1].tracks
    means = [(a.pr_auc + b.pr_auc) / 2 for a, b in zip(first.tags, second.tags, strict=True)]  # type: ignore[operator]
    assert [one.pr_auc for one in both.tags] == pytest.approx(means)
    low, high = both.intervals["roc_auc"]
    assert low < both.roc_auc < high


def test_weights_count_tracks_as_often_as_they_say() -> None:
    probabilities, truths, _ = some()
    values, found = probabilities[:, 3].numpy(), truths[:, 3].numpy() > 0
    weights = np.random.default_rng(1).integers(0, 3, size=(len(values), 4)).astype(float)
    roc_auc, pr_auc = weighted_aucs(values, found, weights)
    for place, weight in enumerate(weights.T):
        assert roc_auc[place] == pytest.approx(roc_auc_score(found, values, sample_weight=weight))
        assert pr_auc[place] == pytest.approx(average_precision_score(found, values, sample_weight=weight))


def test_tags_of_no_or_every_track_are_left_out_and_named() -> None:
    probabilities, truths, names = some(tags=4)
    truths[:, 1], truths[:, 2] = 0, 1
    found = tag_scores(probabilities, truths, names)
    assert found.left_out == ("b", "c")
    rest = tag_scores(probabilities[:, [0, 3]], truths[:, [0, 3]], ["a", "d"])
    assert (found.roc_auc, found.pr_auc, found.chance) == (rest.roc_auc, rest.pr_auc, rest.chance)
    assert found.intervals == rest.intervals
    with pytest.raises(DataError, match="each of 2 tags is that of no or every one of 120 tracks"):
        tag_scores(probabilities[:, 1:3], truths[:, 1:3], ["b", "c"])


def test_intervals_are_those_of_a_bootstrap_with_scikit_learn() -> None:
    probabilities, truths, names = some(tracks=60, tags=2)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(200):
        sample = rng.integers(60, size=60)
        given = truths.numpy()[sample], probabilities.numpy()[sample]
        scored = [tag for tag in range(2) if 0 < given[0][:, tag].sum() < 60]
        drawn.append(np.mean([roc_auc_score(given[0][:, tag], given[1][:, tag]) for tag in scored]))
    expected = np.quantile(drawn, (0.025, 0.975))
    assert tag_scores(probabilities, truths, names).intervals["roc_auc"] == pytest.approx(expected, abs=0.03)


def test_tracks_of_one_group_are_drawn_together() -> None:
    # Five copies of each track, in one group each, say no more than one copy.
    probabilities, truths, names = some(tracks=40, tags=2)
    alone = tag_scores(probabilities, truths, names)
    copies = [one.repeat_interleave(5, dim=0) for one in (probabilities, truths)]
    groups = [str(track) for track in np.repeat(np.arange(40), 5)]
    repeated = tag_scores(copies[0], copies[1], names, groups=groups)
    assert repeated.roc_auc == pytest.approx(alone.roc_auc)
    widths = [high - low for low, high in (one.intervals["roc_auc"] for one in (alone, repeated))]
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    independent = tag_scores(copies[0], copies[1], names).intervals["roc_auc"]
    assert independent[1] - independent[0] < 0.6 * widths[0]
