import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler, normalize

from siamusic_fast.evaluation.retrieval import average_precision, retrieval


def crops(tracks: int, each: int, artists: int, seed: int = 0) -> tuple[torch.Tensor, list[str], list[str]]:
    """Return features of crops that are alike in a track, and a little in an artist, with names of both."""
    rng = np.random.default_rng(seed)
    artist = np.arange(tracks) % artists
    centers = rng.standard_normal((artists, 12))[artist] + rng.standard_normal((tracks, 12))
    features = centers.repeat(each, axis=0) + rng.standard_normal((tracks * each, 12)) + 30
    names = [f"t{place // each}" for place in range(tracks * each)]
    groups = [f"a{artist[place // each]}" for place in range(tracks * each)]
    return torch.tensor(features, dtype=torch.float32), names, groups


def test_average_precision_worked_by_hand() -> None:
    # Ranked: hit, miss, hit, miss: (1/1 + 2/3) / 2. Ranked: miss, miss, miss, hit: 1/4. No hit: 0.
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.4], [0.9, 0.1, 0.5, 0.4], [0.9, 0.1, 0.5, 0.4]])
    relevant = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    expected = torch.tensor([(1 + 2 / 3) / 2, 1 / 4, 0])
    torch.testing.assert_close(average_precision(scores, relevant), expected.double())


def test_retrieval_is_that_of_scikit_learn_query_by_query() -> None:
    features, tracks, groups = crops(tracks=9, each=4, artists=4)
    groups = ["" if group == "a3" else group for group in groups]  # unknown: t3 and t7, as queries too
    found = retrieval(features, tracks, groups)
    cosines = (unit := normalize(StandardScaler().fit_transform(features.numpy()))) @ unit.T
    precisions, hits = [], []
    for query in range(36):
        others = [place for place in range(36) if place != query]
        nearest = others[int(np.argmax(cosines[query, others]))]
        hits.append(float(tracks[nearest] == tracks[query]))
        candidates = [place for place in others if tracks[place] != tracks[query]]
        relevant = [bool(groups[query]) and groups[place] == groups[query] for place in candidates]
        if any(relevant):
            precisions.append(average_precision_score(relevant, cosines[query, candidates]))
    assert len(precisions) == 28
    assert found.same_artist == pytest.approx(precisions, abs=1e-6)
    assert found.same_track.tolist() == hits
    assert found.r_at_1 == pytest.approx(np.mean(hits))
    assert found.map == pytest.approx(np.mean(precisions))
    assert 0.3 < found.map < 0.9
    assert 0.3 < found.r_at_1 < 1
    assert found.same_artist_groups == [group for group in groups if group]
    assert found.same_track_groups[12] == "track t3"


def test_a_crop_is_not_found_by_what_it_shares_with_one_that_overlaps() -> None:
    # Crops 0 and 1 of track a overlap by half and are alike; crop 2 of it is elsewhere and like track b.
    features = torch.tensor([[4.0, 0.0], [4.0, 0.1], [0.0, 4.0], [0.1, 4.0], [0.0, 3.9]])
    tracks, starts = ["a", "a", "a", "b", "b"], [0.0, 0.5, 3.0, 0.0, 1.0]
    assert retrieval(features, tracks).same_track.tolist() == [1, 1, 0, 0, 0]
    assert retrieval(features, tracks, starts=starts).same_track[:2].tolist() == [0, 0]


def test_tracks_with_one_crop_and_artists_with_one_track_ask_for_nothing() -> None:
    features, tracks, _ = crops(tracks=6, each=1, artists=2)
    found = retrieval(features, tracks, ["x", "y", "z", "", "", "x"])
    assert len(found.same_track) == 0
    assert np.isnan(found.r_at_1)
    assert found.same_artist_groups == ["x", "x"]


def test_random_features_find_an_artist_as_often_as_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    tracks = [f"t{place // 5}" for place in range(500)]
    groups = [f"a{place // 50}" for place in range(500)]  # 45 of the 495 other crops are to be found
    found = retrieval(torch.randn(500, 32, generator=rng), tracks, groups)
    assert found.map == pytest.approx(45 / 495, abs=0.02)
    assert found.r_at_1 == pytest.approx(4 / 499, abs=0.015)
