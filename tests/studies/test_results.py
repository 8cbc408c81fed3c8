"""Rows and answers of a study with predictions that are written by hand."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks, write_table
from siamusic_fast.studies import tables
from siamusic_fast.studies.estimate import _caller, _makespan
from siamusic_fast.studies.reproduce import COLUMNS, plan_reproduction
from siamusic_fast.studies.results import StudyResult, collect, read_paper
from siamusic_fast.studies.running import Paper, PlannedStudy
from tests.studies.conftest import CONFIG, ON_CPU

AUDIO, IMAGE = (("fma_medium", "resnet18", aug) for aug in ("audio", "image"))


@pytest.fixture
def two_seeds(shard_set: ShardSet, tmp_path: Path) -> PlannedStudy:
    config = dataclasses.replace(CONFIG, seeds=2)
    return plan_reproduction(config, [shard_set], shard_set, tmp_path / "study", ON_CPU)


def finish(
    planned: PlannedStudy, aug: str, seed: int, wrong: Sequence[int], backbone: str = "resnet18"
) -> None:
    """Write predictions of a cell which are right but for the test tracks at the places `wrong`."""
    key = (backbone, aug, seed)
    (cell,) = (one for one in planned.study.cells if (*one.row[1:], one.config.seed) == key)
    folder, classes = planned.folder.cell(cell), planned.study.test.classes
    rows = []
    tracks = [
        track for track in read_tracks(planned.study.test.folder) if track.split == "test" and track.genre
    ]
    for place, track in enumerate(tracks):
        other = classes[(classes.index(track.genre) + 1) % len(classes)]
        rows.append((track.track_id, track.genre, other if place in wrong else track.genre, "0.5"))
    for protocol in planned.study.finetuning:
        (folder / protocol / "evaluate").mkdir(parents=True)
        head = ("key", "truth", "prediction", "probability")
        write_table(folder / protocol / "evaluate" / "predictions.csv", head, rows)
    (folder / "result.json").write_text("{}")


def collected(planned: PlannedStudy) -> StudyResult:
    return collect(planned.study, planned.folder, {})


def test_a_row_is_averaged_over_its_seeds(two_seeds: PlannedStudy) -> None:
    finish(two_seeds, "image", 0, wrong=[0])
    finish(two_seeds, "image", 1, wrong=[0, 1, 2])
    result = collected(two_seeds)
    n = result.tracks
    row = next(one for one in result.rows if one.row == IMAGE)
    assert row.seeds == (0, 1)
    assert row.by_seed == pytest.approx([(n - 1) / n, (n - 3) / n])
    assert row.scores["accuracy"] == pytest.approx((n - 2) / n)
    low, high = row.intervals["accuracy"]
    assert 0 < low < (n - 2) / n < high <= 1
    assert f"{(n - 3) / n:.1%} to {(n - 1) / n:.1%} (2 seeds)" in tables.spread(row)


def test_answers_pair_tracks_and_the_seeds_that_both_have(two_seeds: PlannedStudy) -> None:
    finish(two_seeds, "audio", 0, wrong=[0, 1])
    finish(two_seeds, "image", 0, wrong=[0])
    finish(two_seeds, "image", 1, wrong=[0, 1, 2, 3])  # no audio cell has this seed
    result = collected(two_seeds)
    found = result.answers[0].found
    assert found is not None
    assert found.difference == pytest.approx(1 / result.tracks)
    # Of pairs, one of n tracks is better: a bootstrap sample without it has the difference 0.
    assert (found.low, found.shown) == (0, False)
    assert "too few groups" in tables.markdown(result)


def test_pairs_of_rows_count_alike_however_many_seeds_they_have(shard_set: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, seeds=2, backbones=("resnet18", "resnet34", "resnet50"))
    planned = plan_reproduction(config, [shard_set], shard_set, tmp_path / "study", ON_CPU)
    for seed in (0, 1):
        finish(planned, "audio", seed, wrong=[0, 1, 2, 3])
        finish(planned, "image", seed, wrong=[])
    finish(planned, "audio", 0, wrong=[], backbone="resnet34")
    finish(planned, "image", 0, wrong=[0, 1], backbone="resnet34")
    finish(planned, "image", 0, wrong=[], backbone="resnet50")  # and no audio
    result = collected(planned)
    answers = {one.words: one.found for one in result.answers if one.protocol == "clean"}
    assert answers["image - audio: fma_medium, resnet50"] is None
    found = answers["image - audio: fma_medium, all backbones (2 of 3 pairs)"]
    assert found is not None
    # 4 tracks better with the one network and 2 worse with the other; three seeds alike would give 2.
    assert found.difference == pytest.approx((4 - 2) / 2 / result.tracks)


def test_cells_that_are_not_finished_are_named(two_seeds: PlannedStudy) -> None:
    finish(two_seeds, "image", 0, wrong=[])
    result = dataclasses.replace(collected(two_seeds), failed={"some-cell": "no more tracks."})
    audio = next(one for one in result.rows if one.row == AUDIO)
    assert (audio.seeds, audio.scores, audio.by_seed) == ((), {}, ())
    assert result.answers[0].found is None
    text = tables.markdown(result)
    # Of both protocols, a row, an answer, and side by side four scores.
    assert text.count(tables.NOT_FINISHED) == 2 * (1 + 1 + 4)
    assert "- some-cell: no more tracks." in text


def test_predictions_of_other_tracks_are_refused(two_seeds: PlannedStudy) -> None:
    finish(two_seeds, "image", 0, wrong=[])
    (path,) = two_seeds.folder.path.glob("cells/*image-seed0/clean/evaluate/predictions.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="not about the test tracks"):
        collected(two_seeds)


def test_the_papers_figures_are_read_by_row(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(
        "pre_trained_on,backbone,augmentations,accuracy,f1\nfma_medium,resnet50,image,0.5,0.4\n"
        "fma_medium,resnet50,audio,0.3,\n"
    )
    assert read_paper(path, COLUMNS) == {
        ("fma_medium", "resnet50", "image"): {"accuracy": 0.5, "f1": 0.4},
        ("fma_medium", "resnet50", "audio"): {"accuracy": 0.3},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backbone,accuracy\nresnet50,0.5\n", "no column 'pre_trained_on'"),
        (
            "pre_trained_on,backbone,augmentations,accuracy\na,b,c,56.7\n",
            r"accuracy = 56.7 must lie between 0 and 1",
        ),
        ("pre_trained_on,backbone,augmentations,accuracy\na,b,c,good\n", "no number"),
    ],
)
def test_a_file_of_the_papers_figures_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_paper(path, COLUMNS)
    with pytest.raises(DataError, match="cannot be read"):
        read_paper(tmp_path / "none.csv", COLUMNS)


def test_figures_of_rows_that_the_study_has_not_are_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    paper: Paper = {("fma_large", "resnet18", "image"): {"accuracy": 0.5}}
    with pytest.raises(ConfigError, match="fma_large, resnet18, image, which is no row"):
        plan_reproduction(CONFIG, [shard_set], shard_set, tmp_path / "study", ON_CPU, paper=paper)


def test_a_gpu_is_measured_in_a_process_that_ends() -> None:
    with _caller(gpus=0) as call:
        assert call(os.getpid) == os.getpid()
    with _caller(gpus=1) as call:
        other = call(os.getpid)
        with pytest.raises(ValueError, match="invalid literal"):
            call(int, "no number")
    assert other != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


@pytest.mark.parametrize(("slots", "expected"), [(1, 10.0), (2, 5.0), (3, 4.0), (9, 4.0)])
def test_slots_take_the_next_cell_when_they_are_free(slots: int, expected: float) -> None:
    # Two slots: 4 and 1 on the first, 3 and 2 on the second. Three: 4, 3, and 2 with 1.
    assert _makespan([4.0, 3.0, 2.0, 1.0], slots) == expected
