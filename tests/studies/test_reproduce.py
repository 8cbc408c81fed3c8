import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.studies import tables
from siamusic_fast.studies.estimate import estimate
from siamusic_fast.studies.finetuning import finetuning
from siamusic_fast.studies.reproduce import COLUMNS, plan_reproduction
from siamusic_fast.studies.results import SCORES, StudyResult, read_paper
from siamusic_fast.studies.running import Paper, PlannedStudy
from tests.studies.conftest import CONFIG, ON_CPU


def evaluated(result: StudyResult, aug: str, protocol: str) -> Mapping[str, Any]:
    """Return what `evaluate` itself wrote of a cell."""
    cell = result.folder / "cells" / f"fma-medium-resnet18-{aug}-seed0"
    values: Mapping[str, Any] = json.loads((cell / protocol / "evaluate" / "results.json").read_text())
    return values


def split_cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_the_template_for_the_papers_figures_has_the_rows_and_is_kept_when_filled_in(
    planned: PlannedStudy, result: StudyResult
) -> None:
    path = result.folder / "paper-template.csv"
    assert read_paper(path, COLUMNS) == {row: {} for row in planned.study.rows}
    filled_in = path.read_text().replace("image,,", "image,0.512,")
    path.write_text(filled_in)
    tables.write(result)
    assert path.read_text() == filled_in
    assert read_paper(path, COLUMNS)["fma_medium", "resnet18", "image"] == {"accuracy": 0.512}


def test_a_stopped_study_goes_on_without_doing_anything_twice(
    planned: PlannedStudy, left_by_the_stop: dict[Path, int], result: StudyResult
) -> None:
    first, second = (planned.folder.cell(cell) for cell in planned.study.cells)
    for path, time in left_by_the_stop.items():
        of_first_cell, encoder = path.is_relative_to(first), second / "pretraining" / "checkpoint.pt"
        if of_first_cell or path == encoder:
            assert path.stat().st_mtime_ns == time, path
    assert planned.folder.left(planned.study) == []
    assert result.failed == {}


def test_the_scores_and_intervals_of_a_row_are_those_of_evaluate(result: StudyResult) -> None:
    assert [(one.row, one.protocol) for one in result.rows] == [
        (("fma_medium", "resnet18", aug), protocol)
        for aug in ("audio", "image")
        for protocol in ("clean", "paper")
    ]
    for one in result.rows:
        values = evaluated(result, one.row[-1], one.protocol)
        assert one.scores == pytest.approx({name: values[name] for name in one.scores})
        for name, interval in one.intervals.items():
            assert interval == pytest.approx(values["intervals"][name]), name
        assert result.tracks == values["tracks"]
        assert result.chance == pytest.approx(values["chance"])


def test_the_answer_is_the_difference_of_image_and_audio(result: StudyResult) -> None:
    assert [one.protocol for one in result.answers] == ["clean", "paper"]
    for one in result.answers:
        assert one.words == "image - audio: fma_medium, resnet18"
        assert one.found is not None
        image, audio = (evaluated(result, aug, one.protocol)["accuracy"] for aug in ("image", "audio"))
        assert one.found.difference == pytest.approx(image - audio)
        assert one.found.low <= one.found.difference <= one.found.high


def test_a_study_leaves_tables_pictures_and_a_page(result: StudyResult) -> None:
    with (result.folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["augmentations"], row["protocol"]) for row in rows] == [
        (one.row[-1], one.protocol) for one in result.rows
    ]
    assert [float(row["f1"]) for row in rows] == pytest.approx(
        [one.scores["f1"] for one in result.rows], abs=1e-4
    )
    assert {row["paper_accuracy"] for row in rows} == {""}
    with (result.folder / "differences.csv").open(newline="") as file:
        assert [row["what"] for row in csv.DictReader(file)] == [one.words for one in result.answers]
    for name in ("scores.png", "figure2.png"):
        assert (result.folder / name).read_bytes().startswith(b"\x89PNG")
    for text in ((result.folder / name).read_text() for name in ("table.md", "report.html")):
        assert "Tiny." in text
        assert "Does image augmentation beat audio augmentation?" in text
        assert f"{result.rows[0].scores['accuracy']:.1%}" in text
        assert "--paper FILE.csv" in text  # which is what puts the paper's figures there


def test_audio_and_image_stand_side_by_side(planned: PlannedStudy, result: StudyResult) -> None:
    rows = {tuple(words) for words in map(split_cells, (result.folder / "table.md").read_text().splitlines())}
    for protocol in ("clean", "paper"):
        audio, image = (evaluated(result, aug, protocol) for aug in ("audio", "image"))
        scores = [f"{one[name]:.1%}" for name in SCORES for one in (audio, image)]
        assert ("fma_medium", "resnet18", protocol, *scores) in rows


def test_the_papers_figures_stand_beside_ours_if_they_are_given(
    planned: PlannedStudy, result: StudyResult
) -> None:
    paper: Paper = {("fma_medium", "resnet18", "image"): {"accuracy": 0.512, "f1": 0.498}}
    again = dataclasses.replace(planned, paper=paper).run()
    assert again.rows == tuple(dataclasses.replace(one, paper=paper.get(one.row, {})) for one in result.rows)
    text = (result.folder / "table.md").read_text()
    rows = [split_cells(line) for line in text.splitlines()]
    (in_paper,) = (words for words in rows if "in the paper" in words)
    nothing = "not given"
    expected = [nothing, "51.2%", nothing, nothing, nothing, nothing, nothing, "49.8%"]
    assert in_paper == ["fma_medium", "resnet18", "in the paper", *expected]
    planned.run()


def test_a_finished_cell_keeps_its_encoder_and_its_classifiers(
    planned: PlannedStudy, result: StudyResult
) -> None:
    for cell in planned.study.cells:
        folder = planned.folder.cell(cell)
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.pt")} == {
            "pretraining/checkpoint.pt",
            "clean/classifier.pt",
            "paper/classifier.pt",
        }


def test_the_estimate_of_the_disk_is_what_finished_cells_take(
    planned: PlannedStudy, result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siamusic_fast.studies.estimate._seconds_per_pair", lambda cell, gpus: 2.0)
    folder = type(planned.folder)(tmp_path / "new")
    expected = estimate(planned.study, folder, ON_CPU)
    taken = sum(path.stat().st_size for path in (result.folder / "cells").rglob("*.pt"))
    assert expected.gigabytes == pytest.approx(taken / 1e9, rel=0.02)
    assert (expected.cells, expected.finished, expected.finetunings) == (2, 0, 4)
    # In an epoch a classifier learns from 4 crops of each track under clean and from 1 under paper, at a half
    # of the time of a pair. Of 9 s, 18 crops are scored at a sixth, of validation and then of test tracks.
    test = planned.study.test
    training, crops = test.tracks(["training"]), 18
    labelled = {split: test.tracks([split], labelled_only=True) for split in test.splits}
    scored = crops * (labelled["validation"] + labelled["test"])
    pairs = training + (4 + 1) * labelled["training"] / 2 + 2 * scored / 6
    assert expected.device_hours == pytest.approx(2 * 2.0 * pairs / 3600)
    assert expected.hours == expected.device_hours


def test_each_protocol_fine_tunes_as_docs_studies_says() -> None:
    clean, paper = (finetuning(CONFIG, protocol, processes=2) for protocol in ("clean", "paper"))
    assert (clean.crops_per_track, clean.encoder_lr, clean.schedule) == (4, clean.lr / 10, "cosine")
    assert (paper.crops_per_track, paper.encoder_lr, paper.schedule) == (1, paper.lr, "constant")
    assert clean.batch_size == paper.batch_size == 4  # of the 8 of the study


def test_other_settings_are_refused_with_their_names(
    planned: PlannedStudy, result: StudyResult, shard_set: ShardSet
) -> None:
    other = dataclasses.replace(CONFIG, epochs=2, finetune_epochs=3)
    with pytest.raises(
        ConfigError, match=r"another pretraining\.epochs, finetuning\.clean\.epochs, finetuning"
    ):
        plan_reproduction(other, [shard_set], shard_set, result.folder, ON_CPU)


def test_more_seeds_another_logger_and_more_checkpoints_go_on_with_what_is_there(
    planned: PlannedStudy, result: StudyResult, shard_set: ShardSet
) -> None:
    more = dataclasses.replace(CONFIG, seeds=2, logger=("tensorboard",), checkpoint_minutes=2.5)
    again = plan_reproduction(more, [shard_set], shard_set, result.folder, ON_CPU)
    trainings = [*(cell.config for cell in again.study.cells), *again.study.finetuning.values()]
    assert {(one.checkpoint_minutes, one.logger) for one in trainings} == {(2.5, ("tensorboard",))}
    left = again.folder.left(again.study)
    assert [(cell.row[-1], cell.config.seed) for cell in left] == [("audio", 1), ("image", 1)]


def test_two_studies_in_one_folder_are_refused(planned: PlannedStudy, result: StudyResult) -> None:
    with FolderLock() as lock:
        lock.take(result.folder)
        with pytest.raises(DataError, match="in use"):
            planned.run()


def test_a_damaged_study_json_is_removed_and_its_study_goes_on(
    planned: PlannedStudy, shard_set: ShardSet, tmp_path: Path
) -> None:
    folder = type(planned.folder)(tmp_path / "study")
    folder.path.mkdir()
    folder.write(planned.study)
    for text in ("{", "[]", "{}"):
        (folder.path / "study.json").write_text(text)
        with pytest.raises(DataError, match=r"study\.json .*: remove it, and its study goes on"):
            folder.check(planned.study)
    (folder.path / "study.json").unlink()
    folder.check(planned.study)
    other = plan_reproduction(CONFIG, [shard_set], shard_set, tmp_path / "other", ON_CPU)
    cells = [
        dataclasses.replace(cell, config=dataclasses.replace(cell.config, lr=0.5))
        for cell in other.study.cells
    ]
    with pytest.raises(ConfigError, match=r"another pretraining\.lr"):
        folder.check(dataclasses.replace(other.study, cells=tuple(cells)))


def test_a_folder_with_something_else_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not empty and no study"):
        plan_reproduction(CONFIG, [shard_set], shard_set, tmp_path, ON_CPU)
    with pytest.raises(ConfigError, match="have the same name"):
        plan_reproduction(CONFIG, [shard_set, shard_set], shard_set, tmp_path / "new", ON_CPU)
