import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from siamusic_fast.config import ProbeConfig
from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.baselines import BASELINES, PRETRAINED
from siamusic_fast.evaluation.cross_validation import Examples, grouped_cv
from siamusic_fast.evaluation.effective_rank import effective_rank
from siamusic_fast.evaluation.features import FeatureExtractor, extract_features
from siamusic_fast.evaluation.linear_probe import choose_linear
from siamusic_fast.evaluation.measures import label_curve
from siamusic_fast.evaluation.probe import ProbeResult, as_json, probe
from siamusic_fast.evaluation.retrieval import retrieval
from siamusic_fast.evaluation.scores import Scores
from siamusic_fast.evaluation.tag_scores import TagScores
from siamusic_fast.models.pretrained import load_encoder
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT
from siamusic_fast.shards.manifest import ShardSet
from tests.runs import FRONTEND

QUICK = ProbeConfig(retrieval_crops=4, backend="torch")


@pytest.fixture(scope="module")
def result(pretrained: Path, shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    return probe(pretrained, shard_set, tmp_path_factory.mktemp("probes") / "out", QUICK)


def test_an_encoder_that_learnt_nothing_is_as_good_as_the_initial_one(
    result: ProbeResult, shard_set: ShardSet
) -> None:
    # The run's encoder is what seed 0 makes of it, and so is the initial one beside it.
    assert result.probes["pretrained"] == result.probes["initial"]
    assert list(result.probes) == [PRETRAINED, *BASELINES]
    assert result.tracks == shard_set.tracks(["test"], labelled_only=True)
    for measure in result.measures:
        best = max(measure.values[name] for name in BASELINES)
        assert measure.values[measure.strongest] == best
        assert measure.difference.difference == measure.values[PRETRAINED] - best
    linear = result.probes["random"].linear
    assert isinstance(linear, Scores)
    assert result.measure("linear").values["random"] == linear.accuracy
    written = json.loads((result.folder / "results.json").read_text())
    assert written == json.loads(json.dumps(as_json(result)))


def test_crops_are_retrieved_from_the_test_split_and_intervals_are_of_artists(
    result: ProbeResult, pretrained: Path, shard_set: ShardSet
) -> None:
    encoder = load_encoder(pretrained)
    with FeatureExtractor(shard_set, "test", FRONTEND, crops=4, backend="torch") as extractor:
        crops = extractor.extract_crops(lambda mels: encoder(mels), SILENT.task("", 1).__enter__())
    found = retrieval(crops.features, crops.names, crops.groups, crops.starts)
    assert len(crops.names) == 4 * result.tracks
    assert result.measure("same_artist").values[PRETRAINED] == pytest.approx(found.map, abs=1e-3)
    assert result.measure("same_track").values[PRETRAINED] == pytest.approx(found.r_at_1, abs=0.05)
    assert result.probes[PRETRAINED].effective_rank == pytest.approx(
        float(effective_rank(crops.features)), rel=1e-3
    )
    artists = {group for group in crops.groups if group}
    assert result.measure("same_artist").groups == len(artists) < result.tracks


def test_crops_of_a_track_start_where_they_were_cut(shard_set: ShardSet, segments: ShardSet) -> None:
    for shards in (shard_set, segments):
        with FeatureExtractor(shards, "test", FRONTEND, crops=5, backend="torch") as extractor:
            crops = extractor.extract_crops(
                lambda mels: mels.mean(dim=(2, 3)), SILENT.task("", 1).__enter__()
            )
            tracks = extract_features(
                lambda mels: mels.mean(dim=(2, 3)), shards, "test", FRONTEND, crops=5, backend="torch"
            )
        starts = {name: [] for name in crops.names}  # type: dict[str, list[float]]
        for name, start in zip(crops.names, crops.starts.tolist(), strict=True):
            starts[name].append(start)
        assert list(starts) == tracks.names
        for of_track in starts.values():  # crops of 0.5 s: five of 6 to 9 s, or of each 2 to 3 s
            gaps = [after - before for before, after in itertools.pairwise(of_track)]
            assert of_track[0] == 0
            assert min(gaps) > 0.7
            assert of_track[4] == pytest.approx(gaps[0] * 4, abs=1e-3)


def test_cross_validation_scores_every_labelled_track(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(choose_linear, penalties=(0.1,))  # of one penalty, for time
    monkeypatch.setattr("siamusic_fast.evaluation.cross_validation.choose_linear", quick)
    config = ProbeConfig(retrieval_crops=2, backend="torch", cv=1, seed=3)
    result = probe(pretrained, shard_set, tmp_path / "out", config)
    splits = ("training", "validation", "test")
    assert result.tracks == shard_set.tracks(splits, labelled_only=True)
    encoder = load_encoder(pretrained)
    parts = [extract_features(encoder, shard_set, split, FRONTEND, backend="torch") for split in splits]
    features = [part.features for part in parts]
    labels, groups = [part.labels for part in parts], [group for part in parts for group in part.groups]
    expected = grouped_cv(torch.cat(features), torch.cat(labels), 3, groups, seed=3)
    linear = result.measure("linear")
    assert linear.values[PRETRAINED] == pytest.approx(expected.accuracy, abs=0.04)
    assert linear.intervals[PRETRAINED] == pytest.approx(expected.interval(seed=3), abs=0.06)


def test_the_curve_of_labels_ends_with_all_of_them() -> None:
    # 60 tracks of 3 classes to learn from, and 30 to be scored.
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    examples = {
        name: Examples(
            features=share * one_hot(labels, 3) + torch.randn(90, 3, generator=rng),
            targets=labels,
            groups=[""] * 90,
            outputs=3,
        )
        for name, share in ((PRETRAINED, 9.0), ("random", 1.0), ("MFCCs", 0.0))
    }
    rounds = [[(torch.arange(60), torch.arange(60, 90))]]
    points = label_curve(examples, rounds, seed=0)
    assert [(point.fraction, point.labels) for point in points] == [(0.01, 3), (0.05, 3), (0.1, 6), (1, 60)]
    for point in points:
        assert point.measure.values[PRETRAINED] > 0.9
        assert point.measure.values["MFCCs"] == pytest.approx(1 / 3, abs=0.2)
        assert point.measure.strongest == "random"
        assert point.measure.difference.shown
    random = [point.measure.values["random"] for point in points]
    assert random[0] < random[-1]
    whole = choose_linear(examples["random"].features[:60], labels[:60], 3, [""] * 60)
    right = whole.predict(examples["random"].features[60:]) == labels[60:]
    assert random[-1] == pytest.approx(float(right.double().mean()))


def test_tags_are_scored_by_their_order(pretrained: Path, tagged: ShardSet, tmp_path: Path) -> None:
    result = probe(pretrained, tagged, tmp_path / "out", QUICK)
    assert result.target == "tags"
    names = ["knn_roc_auc", "knn_pr_auc", "linear_roc_auc", "linear_pr_auc", "same_track", "same_artist"]
    assert [measure.name for measure in result.measures] == names
    for name, one in result.probes.items():
        assert isinstance(one.linear, TagScores)
        assert result.measure("linear_roc_auc").values[name] == one.linear.roc_auc
        assert result.measure("linear_pr_auc").intervals[name] == one.linear.intervals["pr_auc"]
    assert result.measure("linear_roc_auc").values["log-mels"] > 0.9  # tags say how high the tone is


def test_shards_without_classes_or_tags_cannot_be_probed(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    bare = replace(shard_set, classes=("Rock",))
    with pytest.raises(DataError, match="too few classes"):
        probe(pretrained, bare, tmp_path / "out", QUICK)


def of_every_rank(pretrained: Path, shard_set: ShardSet, *, world: World) -> list[dict[str, object]]:
    return world.gather(as_json(probe(pretrained, shard_set, config=QUICK, world=world)))


@pytest.mark.slow
def test_processes_share_the_tracks_of_a_probe(pretrained: Path, shard_set: ShardSet) -> None:
    alone = as_json(probe(pretrained, shard_set, config=QUICK))
    work = functools.partial(of_every_rank, pretrained, shard_set)
    assert launch(work, gpus=0, procs=2) == [alone, alone]
