import csv
import functools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn

from siamusic_fast.config import Architecture
from siamusic_fast.evaluation.features import FeatureExtractor, extract_features
from siamusic_fast.evaluation.knn import knn_accuracy, knn_predict
from siamusic_fast.models.networks import encoder
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.runs import FRONTEND


def at(*degrees: float) -> torch.Tensor:
    """Return points on the unit circle."""
    return torch.tensor([[math.cos(math.radians(x)), math.sin(math.radians(x))] for x in degrees])


def test_near_neighbors_outvote_more_of_them_that_are_farther() -> None:
    # From 0 degrees: one of class 1 at 5 degrees, two of class 0 at 40. Votes of weight exp(cos / 0.07):
    # exp(0.9962 / 0.07) = 1.51e6 against 2 exp(0.7660 / 0.07) = 1.13e5; at T = 1, 2.71 against 4.30.
    bank, labels = at(40, -40, 5), torch.tensor([0, 0, 1])
    assert knn_predict(at(0), bank, labels, 2, k=3).tolist() == [1]
    assert knn_predict(at(0), bank, labels, 2, k=3, temperature=1.0).tolist() == [0]


def test_only_the_k_nearest_vote_and_a_small_bank_votes_as_a_whole() -> None:
    bank, labels = at(10, 20, 30, 40), torch.tensor([0, 1, 1, 1])
    assert knn_predict(at(0), bank, labels, 2, k=1).tolist() == [0]
    assert knn_predict(at(0), bank, labels, 2, k=99, temperature=10.0).tolist() == [1]


def test_lengths_do_not_count() -> None:
    bank, labels = torch.tensor([[100.0, 1.0], [0.0, 0.01]]), torch.tensor([0, 1])
    assert knn_predict(torch.tensor([[0.1, 7.0], [5.0, 0.1]]), bank, labels, 2, k=1).tolist() == [1, 0]


def test_features_of_a_track_are_the_mean_over_its_crops(shard_set: ShardSet) -> None:
    def loudness(mels: torch.Tensor) -> torch.Tensor:
        return mels.mean(dim=(1, 2))

    _, found, labels = extract_features(loudness, shard_set, "training", FRONTEND, crops=3)
    settings: dict[str, Any] = {"splits": ["training"], "frontend": FRONTEND, "batch_size": 5}
    with TrackLoader(shard_set, crops=3, labelled_only=True, **settings) as loader:
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
    accuracy = knn_accuracy(resnet, shard_set, FRONTEND)
    assert (accuracy * 6).is_integer()  # of 6 validation tracks
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in resnet.modules()] == modes
    for name, value in resnet.state_dict().items():
        assert torch.equal(value, weights[name]), name


def pool(mels: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(mels, 8).flatten(1)


def test_segments_of_a_track_count_as_one(segments: ShardSet) -> None:
    with (segments.folder / "tracks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["class"]]
    shards = [shard.file for shard in segments.shards(["test"], labelled_only=True)]
    in_order = sorted(rows, key=lambda row: shards.index(row["shard"]))
    settings: dict[str, Any] = {"splits": ["test"], "frontend": FRONTEND, "batch_size": 4}
    with TrackLoader(segments, crops=1, labelled_only=True, **settings) as loader:
        samples = torch.cat([pool(mels[:, 0]) for mels, _ in loader])
    expected = defaultdict(list)
    for row, sample in zip(in_order, samples, strict=True):
        expected[row["track_id"]].append(sample)
    assert {len(found) for found in expected.values()} == {2, 3}
    names, outputs, labels = extract_features(pool, segments, "test", FRONTEND, crops=1)
    assert names == list(expected)
    means = [torch.stack(found).mean(dim=0) for found in expected.values()]
    torch.testing.assert_close(outputs, torch.stack(means))
    classes = {row["track_id"]: row["class"] for row in rows}
    assert [segments.classes[label] for label in labels] == [classes[name] for name in names]


def test_knn_scores_tracks_and_not_their_segments(
    segments: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def predict(features: torch.Tensor, bank: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        counts.append((len(bank), len(features)))
        return torch.zeros(len(features), dtype=torch.long)

    monkeypatch.setattr("siamusic_fast.evaluation.knn.knn_predict", predict)
    accuracy = knn_accuracy(nn.Flatten(), segments, FRONTEND)
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
    names, whole, labels = extract_features(pool, shard_set, "validation", FRONTEND)
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
    _, found, labels = extract_features(pool, shard_set, "validation", FRONTEND, world=world)
    return world.gather((found.flatten().tolist(), labels.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("procs", [2, 4, 7])
def test_all_processes_get_all_tracks(shard_set: ShardSet, procs: int) -> None:
    [alone] = launch(functools.partial(shares, shard_set), gpus=0)
    assert launch(functools.partial(shares, shard_set), gpus=0, procs=procs) == [alone] * procs
