import pytest

from siamusic_fast.analysis.demo import (
    QUICK_CORPUS,
    QUICK_FINETUNE,
    QUICK_PRETRAIN,
    DemoResult,
    demo,
    shards,
)
from siamusic_fast.progress import SILENT


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    root = tmp_path_factory.mktemp("demo") / "here"
    return demo(root, QUICK_CORPUS, QUICK_PRETRAIN, QUICK_FINETUNE, procs=2)


def test_the_demo_packs_what_is_sound_and_rejects_what_is_broken(result: DemoResult) -> None:
    packed = sum(result.shard_set.tracks([split]) for split in result.shard_set.splits)
    # 3 tracks of 8 genres; of the 6 broken ones, the one cut in a frame is too short at this length.
    assert packed == 24
    assert sum(result.shard_set.rejected.values()) == 6


def test_the_demo_scores_every_test_track_and_leaves_all_its_files(result: DemoResult) -> None:
    assert result.evaluated.scores.tracks == result.shard_set.tracks(["test"])
    assert result.evaluated.scores.chance == 1 / 8
    written = {str(path.relative_to(result.run)) for path in result.run.rglob("*") if path.is_file()}
    assert {
        "checkpoint.pt",
        "config.json",
        "metrics.jsonl",
        "plots/preview.png",
        "report.html",
        "plots/loss.png",
        "plots/collapse.png",
        "finetune/classifier.pt",
        "finetune/plots/curves.png",
        "finetune/evaluate/confusion.png",
        "finetune/evaluate/predictions.csv",
        "finetune/evaluate/results.json",
    } <= written


def test_the_demo_ends_with_a_page_that_has_every_test_track(result: DemoResult) -> None:
    assert result.reported.path == result.run / "report.html"
    assert result.reported.tracks == result.shard_set.tracks(["test"])
    (note,) = result.reported.notes
    assert f"run `siamusic-fast probe {result.run}`." in note


def test_a_second_demo_uses_the_same_audio_and_shards(result: DemoResult) -> None:
    data = result.run.parents[1] / "data"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert shards(data, QUICK_CORPUS, 1, SILENT) == result.shard_set
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
