import csv
import functools
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import one_hot

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.config import Architecture
from siamusic_fast.evaluation.features import FeatureExtractor, extract_features
from siamusic_fast.evaluation.knn import (
    CROPS_PER_TRACK,
    knn_name,
    knn_possible,
    knn_predict,
    knn_score,
    knn_votes,
)
from siamusic_fast.models.networks import encoder
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_tracks
from tests.runs import FRONTEND


def corners() -> torch.Tensor:
    """Return the corners of a square, whose features have mean 0 and variance 1."""
    return torch.tensor([(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])


def test_votes_worked_by_hand() -> None:
    # A query at (3, 0) has cosines of 1/sqrt(2) with two corners and of -1/sqrt(2) with two. At temperature
    # sqrt(2) / ln 3, e^(s / T) is sqrt(3) and 1 / sqrt(3): 3 to 1, so 3/8 each for the near ones.
    targets = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    temperature = math.sqrt(2) / math.log(3)
    found = knn_votes(torch.tensor([[3.0, 0.0]]), corners(), targets, temperature=temperature)
    torch.testing.assert_close(found, torch.tensor([[4 / 8, 4 / 8]]))
    found = knn_votes(torch.tensor([[3.0, 0.1]]), corners(), targets, k=1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))


def test_near_neighbors_outvote_more_of_them_that_are_farther() -> None:
    query, labels = torch.tensor([[1.0, 0.5]]), torch.tensor([1, 0, 0, 0])
    assert knn_predict(query, corners(), labels, 2, k=3).tolist() == [1]
    assert knn_predict(query, corners(), labels, 2, k=3, temperature=10.0).tolist() == [0]


def test_votes_are_those_of_scikit_learn_on_standardized_features() -> None:
    rng = np.random.default_rng(0)
    bank, queries = (rng.gamma(2.0, 3.0, (n, 8)) + 50 for n in (90, 40))  # raw cosines are above 0.99
    labels = rng.integers(0, 3, 90)
    scaler = StandardScaler().fit(bank)
    sklearn = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    sklearn.fit(scaler.transform(bank), labels)
    expected = sklearn.predict_proba(scaler.transform(queries))
    tensors = torch.tensor(queries), torch.tensor(bank), one_hot(torch.tensor(labels), 3)
    assert knn_votes(*tensors).numpy() == pytest.approx(expected, abs=1e-4)


def test_units_of_the_features_do_not_count_nor_do_constant_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(30, 4, generator=rng), torch.randn(9, 4, generator=rng)
    labels = torch.arange(30) % 3
    units, offset = torch.tensor([1.0, 1000.0, 0.01, 3.0]), torch.tensor([0.0, 5e3, 1.0, -2.0])
    bank_of_units, queries_of_units = (
        torch.cat([rows * units + offset, torch.full((len(rows), 1), 7.1)], dim=1) for rows in (bank, queries)
    )
    expected = knn_predict(queries, bank, labels, 3, k=5)
    assert torch.equal(knn_predict(queries_of_units, bank_of_units, labels, 3, k=5), expected)


def test_a_small_bank_votes_as_a_whole() -> None:
    query, labels = torch.tensor([[1.0, 0.5]]), torch.tensor([0, 1, 1, 1])
    assert knn_predict(query, corners(), labels, 2, k=1).tolist() == [0]
    assert knn_predict(query, corners(), labels, 2, k=99, temperature=10.0).tolist() == [1]


def test_features_of_a_track_are_the_mean_over_its_crops(shard_set: ShardSet) -> None:
    def loudness(mels: torch.Tensor) -> torch.Tensor:
        return mels.mean(dim=(1, 2))

    _, found, labels, *_ = extract_features(loudness, shard_set, "training", FRONTEND, crops=3)
    settings: dict[str, Any] = {"splits": ["training"], "frontend": FRONTEND, "batch_size": 5}
    with TrackLoader(shard_set, crops=3, target="class", **settings) as loader:
        batches = list(loader)
    expected = torch.cat([mels.mean(dim=(1, 2, 3)) for mels, _ in batches])
    torch.testing.assert_close(found, expected)
    assert labels.tolist() == torch.cat([truths for _, truths in batches]).tolist()


def test_a_look_at_the_encoder_leaves_it_and_the_random_numbers_as_they_were(shard_set: ShardSet) -> None:
    torch.manual_seed(0)
    resnet = encoder(Architecture("resnet18"))
    resnet.layer1.eval()  # type: ignore[union-attr]
    weights = {name: value.clone() for name, value in resnet.state_dict().items()}
    modes = [part.training for part in resnet.modules()]
    random = torch.get_rng_state()
    accuracy = knn_score(resnet, shard_set, FRONTEND)
    assert (accuracy * 6).is_integer()  # of 6 validation tracks
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in resnet.modules()] == modes
    for name, value in resnet.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_tags_are_scored_by_the_area_under_the_curve(tagged: ShardSet) -> None:
    parts = [
        extract_features(pool, tagged, split, FRONTEND, crops=CROPS_PER_TRACK, backend="torch")
        for split in ("training", "validation")
    ]
    bank, validation = parts
    votes = knn_votes(validation.features, bank.features, bank.tags)
    expected = roc_auc_score(validation.tags, votes, average="macro")
    found = knn_score(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), tagged, FRONTEND, backend="torch")
    assert found == pytest.approx(expected)
    assert (knn_name(tagged), knn_possible(tagged)) == ("knn_roc_auc", True)


def test_tags_that_no_validation_track_tells_apart_are_not_scored(
    tagged: ShardSet, shard_set: ShardSet
) -> None:
    assert not knn_possible(replace(tagged, splits={**tagged.splits, "validation": ()}))
    assert knn_possible(shard_set)
    assert knn_name(shard_set) == "knn"


def pool(mels: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(mels, 8).flatten(1)


def test_segments_of_a_track_count_as_one(segments: ShardSet) -> None:
    with (segments.folder / "tracks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["class"]]
    shards = [shard.file for shard in segments.shards(["test"], labelled_only=True)]
    in_order = sorted(rows, key=lambda row: shards.index(row["shard"]))
    settings: dict[str, Any] = {"splits": ["test"], "frontend": FRONTEND, "batch_size": 4}
    with TrackLoader(segments, crops=1, target="class", **settings) as loader:
        samples = torch.cat([pool(mels[:, 0]) for mels, _ in loader])
    expected = defaultdict(list)
    for row, sample in zip(in_order, samples, strict=True):
        expected[row["track_id"]].append(sample)
    assert {len(found) for found in expected.values()} == {2, 3}
    names, outputs, labels, _, groups = extract_features(pool, segments, "test", FRONTEND, crops=1)
    assert names == list(expected)
    means = [torch.stack(found).mean(dim=0) for found in expected.values()]
    torch.testing.assert_close(outputs, torch.stack(means))
    classes = {row["track_id"]: row["class"] for row in rows}
    assert [segments.classes[label] for label in labels] == [classes[name] for name in names]
    artists = {row["track_id"]: row["group"] for row in rows}
    assert groups == [artists[name] for name in names]
    assert len(set(groups)) > 1


def test_a_track_has_the_tags_of_all_its_segments(fma_corpus: Path, tmp_path: Path) -> None:
    corpus = load_fma(fma_corpus)
    tracks = tuple(
        replace(track, genre="", tags=(track.genre, "any") if track.genre else ())
        for track in corpus.tracks
        if track.split == "test"
    )
    config = PackConfig(min_seconds=2.0, max_seconds=3.0)
    shard_set = pack(replace(corpus, tracks=tracks), tmp_path / "set", config, procs=1)
    with FeatureExtractor(shard_set, "test", FRONTEND, crops=1) as extractor, SILENT.task("", 0) as task:
        found = extractor.extract(pool, task)
    tags_of = {track.key: track.tags for track in tracks if track.tags}
    assert sorted(found.names) == sorted(tags_of)
    assert extractor.samples > len(found.names) == len(found.features)
    assert found.tags.dtype == torch.uint8
    for name, own in zip(found.names, found.tags.tolist(), strict=True):
        assert {tag for tag, has in zip(shard_set.tags, own, strict=True) if has} == set(tags_of[name])


def test_knn_scores_tracks_and_not_their_segments(
    segments: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def predict(features: torch.Tensor, bank: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        counts.append((len(bank), len(features)))
        return torch.zeros(len(features), dtype=torch.long)

    monkeypatch.setattr("siamusic_fast.evaluation.knn.knn_predict", predict)
    accuracy = knn_score(nn.Flatten(), segments, FRONTEND)
    genres = {track.track_id: track.split for track in read_tracks(segments.folder) if track.genre}
    assert counts == [tuple(list(genres.values()).count(split) for split in ("training", "validation"))]
    assert (accuracy * counts[0][1]).is_integer()


def test_a_pass_has_as_many_crops_as_a_batch_whatever_the_length_of_the_tracks(shard_set: ShardSet) -> None:
    sizes = []

    def noted(mels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(mels))
        return pool(mels)

    for crops, batch_size, tracks, passes in (
        (100, 256, [2, 2, 2], [200] * 3),
        (100, 40, [1] * 6, [40, 40, 20] * 6),
    ):
        sizes.clear()
        with (
            FeatureExtractor(
                shard_set, "validation", FRONTEND, crops=crops, batch_size=batch_size
            ) as extractor,
            SILENT.task("", 1) as task,
        ):
            assert [len(found) for found in extractor.extract_own(noted, task)] == tracks
        assert sizes == passes


def test_processes_share_the_tracks_in_order(shard_set: ShardSet) -> None:
    listed = [track for track in read_tracks(shard_set.folder) if track.split == "validation" and track.genre]
    assert len(listed) == 6
    names, whole, labels, *_ = extract_features(pool, shard_set, "validation", FRONTEND)
    assert names == [track.track_id for track in listed]
    assert [shard_set.classes[label] for label in labels] == [track.genre for track in listed]
    for processes in (2, 4):
        parts: list[torch.Tensor] = []
        for rank in range(processes):
            world = World(rank=rank, world_size=processes)
            with (
                FeatureExtractor(shard_set, "validation", FRONTEND, world=world) as extractor,
                SILENT.task("", 1) as task,
            ):
                parts += extractor.extract_own(pool, task)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def shares(shard_set: ShardSet, *, world: World) -> list[tuple[list[float], list[int]]]:
    """Return what every rank thinks that the features and labels of the validation tracks are."""
    _, found, labels, *_ = extract_features(pool, shard_set, "validation", FRONTEND, world=world)
    return world.gather((found.flatten().tolist(), labels.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("procs", [2, 4, 7])
def test_all_processes_get_all_tracks(shard_set: ShardSet, procs: int) -> None:
    [alone] = launch(functools.partial(shares, shard_set), gpus=0)
    assert launch(functools.partial(shares, shard_set), gpus=0, procs=procs) == [alone] * procs
