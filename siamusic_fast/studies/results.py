"""What came out of a study: the rows of its table, and answers to its questions, with intervals."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.config.fields import Between, check_value
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.evaluation.evaluate import PREDICTIONS
from siamusic_fast.evaluation.intervals import (
    Difference,
    count_groups,
    group_weights,
    middle,
    paired_difference,
)
from siamusic_fast.evaluation.scores import macro_scores
from siamusic_fast.shards.tables import open_table, read_tracks
from siamusic_fast.studies.study import Question, Row, Study, StudyFolder

SCORES = ("accuracy", "recall", "precision", "f1")
"""Scores of Table 2 of Kim, Hong, Lee 2022; all but accuracy are macro averages."""

Interval = tuple[float, float]
_Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """Scores of the cells of one row under one protocol, averaged over their seeds, between 0 and 1."""

    row: Row
    protocol: str
    seeds: tuple[int, ...]
    """Seeds of the cells that are finished; if there are none, so are the scores."""
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    """95% intervals over the test tracks, resampled by group, of the averages over these seeds."""
    by_seed: tuple[float, ...]
    """Accuracy of each seed."""
    paper: Mapping[str, float]
    """Scores of the paper, as far as they were given."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A difference of accuracy on the same test tracks, averaged over pairs of rows.

    Each pair of rows counts once, averaged over the seeds that both of its rows have.
    """

    words: str
    """What is compared, and of how many pairs of rows if not of all."""
    protocol: str
    found: Difference | None
    """None if no cells of both sides are finished."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All that a study came to."""

    folder: Path
    study: Study
    rows: tuple[RowScores, ...]
    answers: tuple[Answer, ...]
    tracks: int
    """Test tracks that are scored."""
    groups: int
    """Groups of test tracks, such as artists, by which intervals are resampled."""
    chance: float
    """Accuracy of always giving the most frequent class."""
    failed: Mapping[str, str]
    """Errors of the cells that failed, by the cell's name."""


def collect(
    study: Study,
    folder: StudyFolder,
    failed: Mapping[str, str],
    paper: Mapping[Row, Mapping[str, float]] | None = None,
) -> StudyResult:
    """Read the predictions of every finished cell and return what they say together.

    `paper` has the paper's scores by row. Raises DataError if a file of predictions is damaged or is about
    other tracks.
    """
    tracks = _TestTracks(study)
    weights = group_weights(tracks.groups)
    predictions = {
        (cell.row, protocol, cell.config.seed): tracks.read(
            folder.cell(cell) / protocol / "evaluate" / PREDICTIONS
        )
        for cell in study.cells
        if folder.is_finished(cell)
        for protocol in study.finetuning
    }
    rows = [
        _row_scores(
            row,
            protocol,
            {seed: found for (r, p, seed), found in predictions.items() if (r, p) == (row, protocol)},
            tracks,
            weights,
            (paper or {}).get(row, {}),
        )
        for row in study.rows
        for protocol in study.finetuning
    ]
    answers = [
        _answer(question, protocol, predictions, tracks)
        for question in study.questions
        for protocol in study.finetuning
    ]
    return StudyResult(
        folder=folder.path,
        study=study,
        rows=tuple(rows),
        answers=tuple(answers),
        tracks=len(tracks.names),
        groups=tracks.count,
        chance=float(np.bincount(tracks.labels).max() / len(tracks.labels)),
        failed=failed,
    )


class _TestTracks:
    """The labelled test tracks, in the order of the shards: names, labels and groups."""

    def __init__(self, study: Study) -> None:
        self.classes = study.test.classes
        found = {
            track.track_id: (self.classes.index(track.genre), track.group)
            for track in read_tracks(study.test.folder)
            if track.split == "test" and track.genre
        }
        self.names = list(found)
        self.labels = np.array([label for label, _ in found.values()], dtype=np.int64)
        self.groups = [group for _, group in found.values()]
        self.count = count_groups(self.groups)

    def read(self, path: Path) -> _Numbers:
        """Return the predicted class of each track from a predictions.csv."""
        number = {name: place for place, name in enumerate(self.classes)}
        found = {}
        with open_table(path, ("key", "truth", "prediction", "probability")) as rows:
            for key, _, prediction, _ in rows:
                found[key] = number[prediction]
        if found.keys() != set(self.names):
            raise DataError(
                f"{path} is not about the test tracks of these shards: remove the folder of its cell."
            )
        return np.array([found[name] for name in self.names], dtype=np.int64)


def _row_scores(
    row: Row,
    protocol: str,
    by_seed: Mapping[int, _Numbers],
    tracks: _TestTracks,
    weights: _Numbers,
    paper: Mapping[str, float],
) -> RowScores:
    """Return the scores of a row, averaged over its seeds, each with its interval."""
    values: list[dict[str, NDArray[np.float64]]] = []
    drawn: list[dict[str, NDArray[np.float64]]] = []
    classes = len(tracks.classes)
    for found in by_seed.values():
        pairs = np.eye(classes * classes)[tracks.labels * classes + found]
        values.append(macro_scores(pairs.sum(axis=0).reshape(classes, classes)))
        drawn.append(macro_scores((weights @ pairs).reshape(-1, classes, classes)))
    return RowScores(
        row=row,
        protocol=protocol,
        seeds=tuple(by_seed),
        scores={name: float(np.mean([one[name] for one in values])) for name in SCORES} if values else {},
        intervals={name: middle(np.mean([one[name] for one in drawn], axis=0)) for name in SCORES}
        if values
        else {},
        by_seed=tuple(float(one["accuracy"]) for one in values),
        paper=paper,
    )


def _answer(
    question: Question,
    protocol: str,
    predictions: Mapping[tuple[Row, str, int], _Numbers],
    tracks: _TestTracks,
) -> Answer:
    """Return the paired difference of accuracy: the mean over seeds of each pair of rows, then over pairs."""
    pairs = []
    for ours, theirs in zip(question.ours, question.theirs, strict=True):
        of_seeds = [
            [predictions[row, protocol, seed] == tracks.labels for row in (ours, theirs)]
            for row, p, seed in predictions
            if (row, p) == (ours, protocol) and (theirs, protocol, seed) in predictions
        ]
        if of_seeds:
            pairs.append(np.mean(of_seeds, axis=0))
    if not pairs:
        return Answer(words=question.words, protocol=protocol, found=None)
    ours_right, theirs_right = np.mean(pairs, axis=0)
    some = "" if len(pairs) == len(question.ours) else f" ({len(pairs)} of {len(question.ours)} pairs)"
    return Answer(
        words=question.words + some,
        protocol=protocol,
        found=paired_difference(ours_right, theirs_right, tracks.groups),
    )


def read_paper(path: Path, columns: Sequence[str]) -> dict[Row, dict[str, float]]:
    """Return the paper's scores by row from a CSV file with the `columns` of a row, and any of `SCORES`.

    Raises DataError for a file that cannot be read, ConfigError for missing columns and for a score that is
    not between 0 and 1.
    """
    names = tuple(map(column_name, columns))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
            found = tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a CSV file of the paper's scores.") from error
    given = [name for name in SCORES if name in found]
    if missing := [name for name in names if name not in found]:
        raise ConfigError(
            f"{path} has no column {missing[0]!r}: its first line must be {','.join((*names, *SCORES))}, of "
            "which scores may be left out."
        )
    table: dict[Row, dict[str, float]] = {}
    for line in lines:
        row = tuple(str(line[name]).strip() for name in names)
        table[row] = {name: _score(path, name, line[name]) for name in given if line[name]}
    return table


def column_name(heading: str) -> str:
    """Return the name in a CSV file of a column of the table."""
    return heading.lower().replace("-", "_").replace(" ", "_")


def _score(path: Path, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{path}: {name} = {text!r} is no number: write a score such as 0.567.") from None
    check_value(name, value, Between(0, 1))
    return value
