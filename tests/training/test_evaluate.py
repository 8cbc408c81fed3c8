import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from siamusic_fast.errors import DataError
from siamusic_fast.shards.fma import load_fma
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.training.evaluate import find_classifier, join_segments


def test_segments_of_a_track_count_as_one(fma_corpus: Path, tmp_path: Path) -> None:
    segments = pack(
        load_fma(fma_corpus), tmp_path / "segments", PackConfig(min_seconds=2.0, max_seconds=3.0), workers=2
    )
    count = segments.tracks(["test"], labelled_only=True)
    numbers = torch.arange(float(count)).unsqueeze(1)
    with (segments.folder / "tracks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["class"]]
    by_shard = [
        row for shard in segments.shards(["test"], True) for row in rows if row["shard"] == shard.file
    ]
    labels = torch.tensor([segments.classes.index(row["class"]) for row in by_shard])
    expected = defaultdict(list)
    for number, row in enumerate(by_shard):
        expected[row["track_id"]].append(number)
    assert len(expected) < count  # 6 to 9 s are 2 or 3 segments
    names, outputs, truths = join_segments(segments, "test", numbers, labels)
    assert names == list(expected)
    means = [sum(found) / len(found) for found in expected.values()]
    assert outputs.flatten().tolist() == pytest.approx(means)
    assert truths.tolist() == [int(labels[found[0]]) for found in expected.values()]


def test_whole_tracks_stay_as_they_are(shard_set: ShardSet) -> None:
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    names, joined, truths = join_segments(shard_set, "validation", outputs, labels)
    assert len(set(names)) == 6
    assert torch.equal(joined, outputs)
    assert torch.equal(truths, labels)


def test_a_run_without_a_classifier_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no classifier: `siamusic-fast finetune"):
        find_classifier(tmp_path)
