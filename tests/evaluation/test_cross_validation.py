import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.cross_validation import classify_knn, grouped_cv
from siamusic_fast.evaluation.folds import grouped_folds


def test_every_row_is_scored_once_and_no_group_is_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    artists = rng.integers(0, 30, 120)
    groups = [f"a{artist}" if artist else "" for artist in artists]
    labels = torch.tensor(artists % 4)
    folds = grouped_folds(labels, groups, folds=5, seed=3)
    assert len(folds) == 5
    assert sorted(torch.cat([scored for _, scored in folds]).tolist()) == list(range(120))
    for learnt, scored in folds:
        assert sorted([*learnt.tolist(), *scored.tolist()]) == list(range(120))
        known = {groups[row] for row in learnt.tolist()} - {""}
        assert not known & {groups[row] for row in scored.tolist()}
        assert len(scored) == pytest.approx(24, abs=6)
        assert set(labels[learnt].tolist()) == set(labels[scored].tolist()) == {0, 1, 2, 3}
    assert all(
        torch.equal(a[1], b[1]) for a, b in zip(folds, grouped_folds(labels, groups, seed=3), strict=True)
    )
    other = grouped_folds(labels, groups, seed=4)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))


def test_there_are_no_more_folds_than_groups_or_rows_of_a_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    assert len(grouped_folds(labels, ["a", "b", "c", "a", "b", "c"])) == 3
    assert len(grouped_folds(labels, ["a"] * 3 + ["b"] * 3)) == 2
    assert grouped_folds(labels, ["a"] * 6) == []
    assert grouped_folds(torch.tensor([0, 1]), ["", ""]) == []
    assert len(grouped_folds(torch.ones(8, 3), [""] * 8)) == 5  # tags


def test_artists_cannot_be_learnt_by_heart() -> None:
    # What tells the artist tells nothing about the genre of another one.
    rng = torch.Generator().manual_seed(0)
    artist = torch.arange(48) % 16
    features = torch.randn(16, 20, generator=rng)[artist] + 0.1 * torch.randn(48, 20, generator=rng)
    labels = torch.randint(0, 2, (16,), generator=rng)[artist]
    by_track = grouped_cv(features, labels, 2, [""] * 48)
    by_artist = grouped_cv(features, labels, 2, [str(number) for number in artist.tolist()], repeats=2)
    assert by_track.accuracy == 1
    assert by_artist.accuracy < 0.75
    assert by_artist.predictions.shape == (2, 48)
    low, high = by_artist.interval()
    assert high - low > 0.2
    assert low < by_artist.accuracy < high


def test_each_prediction_is_that_of_the_fit_to_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((50, 6)), rng.integers(0, 3, 50)
    groups = [str(number // 2) for number in range(50)]
    found = grouped_cv(
        torch.tensor(features), torch.tensor(labels), 3, groups, repeats=2, seed=5, classify=classify_knn
    )
    for repeat in range(2):
        for learnt, scored in grouped_folds(torch.tensor(labels), groups, seed=5 + repeat):
            scaler = StandardScaler().fit(features[learnt])
            sklearn = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
            sklearn.fit(scaler.transform(features[learnt]), labels[learnt])
            expected = sklearn.predict(scaler.transform(features[scored]))
            assert found.predictions[repeat, scored].tolist() == expected.tolist()
    assert found.right.tolist() == (found.predictions.numpy() == labels).mean(axis=0).tolist()


def test_one_artist_cannot_be_cross_validated() -> None:
    with pytest.raises(DataError, match=r"4 tracks of 1 group cannot be cross-validated"):
        grouped_cv(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 2, ["a"] * 4)
    with pytest.raises(DataError, match=r"2 tracks of 2 groups cannot be cross-validated"):
        grouped_cv(torch.randn(2, 2), torch.tensor([0, 1]), 2, ["", ""])  # one track of each class
