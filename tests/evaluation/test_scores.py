import statistics

import numpy as np
import pytest
import torch

from siamusic_fast.evaluation.scores import bootstrap_intervals, macro_scores, scores


def pairs(confusion: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predictions and labels that have this confusion matrix, truths in rows."""
    cells = [
        (truth, guess)
        for truth, row in enumerate(confusion)
        for guess, count in enumerate(row)
        for _ in range(count)
    ]
    labels, predictions = torch.tensor(cells).T
    return predictions, labels


def test_scores_of_a_confusion_matrix_worked_by_hand() -> None:
    found = scores(*pairs([[5, 1, 0], [2, 3, 1], [0, 0, 8]]), classes=["Rock", "Folk", "Jazz"])
    assert found.tracks == 20
    assert found.chance == pytest.approx(8 / 20)
    assert found.accuracy == pytest.approx(16 / 20)
    assert found.recall == pytest.approx((5 / 6 + 3 / 6 + 8 / 8) / 3)
    assert found.precision == pytest.approx((5 / 7 + 3 / 4 + 8 / 9) / 3)
    # F1 = 2 TP / (2 TP + FP + FN)
    assert found.f1 == pytest.approx((10 / 13 + 6 / 10 + 16 / 17) / 3)
    assert np.array_equal(found.confusion, [[5, 1, 0], [2, 3, 1], [0, 0, 8]])
    folk = found.classes[1]
    assert (folk.name, folk.tracks) == ("Folk", 6)
    assert (folk.recall, folk.precision, folk.f1) == pytest.approx((3 / 6, 3 / 4, 6 / 10))


def test_repeats_count_each_track_once() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    found = scores(torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), labels, ["Rock", "Folk"])
    assert (found.tracks, found.chance) == (4, 0.75)
    assert [one.tracks for one in found.classes] == [3, 1]
    assert np.array_equal(found.confusion, [[1.5, 1.5], [0.0, 1.0]])
    assert found.accuracy == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found.recall == pytest.approx((3 / 6 + 2 / 2) / 2)
    assert found.precision == pytest.approx((3 / 3 + 2 / 5) / 2)
    same = scores(labels.repeat(3, 1), labels, ["Rock", "Folk"], groups=["a", "", "a", ""])
    assert same == scores(labels, labels, ["Rock", "Folk"], groups=["a", "", "a", ""])


def test_a_class_that_occurs_nowhere_is_left_out_of_the_averages() -> None:
    found = scores(*pairs([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), classes=["Rock", "Folk", "Jazz"])
    assert found.recall == pytest.approx((3 / 4 + 4 / 4) / 2)
    assert found.precision == pytest.approx((3 / 3 + 4 / 5) / 2)
    assert found.classes[2].tracks == 0


def test_a_class_that_is_only_predicted_counts_with_zero() -> None:
    found = scores(*pairs([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), classes=["Rock", "Folk", "Jazz"])
    assert found.recall == pytest.approx((3 / 4 + 4 / 4 + 0) / 3)
    assert found.precision == pytest.approx((3 / 3 + 4 / 4 + 0) / 3)


def test_the_interval_of_the_accuracy_is_that_of_a_binomial_distribution() -> None:
    # 50 of 100 are right: the number right among 100 drawn anew is binomial, and its quantiles at 2.5% and
    # 97.5% are 40 and 60 (any table).
    found = bootstrap_intervals(np.repeat([0, 1, 2, 3], 25), 2, resamples=20_000)
    assert found["accuracy"] == pytest.approx((0.40, 0.60))


def test_what_is_never_wrong_has_no_interval() -> None:
    found = scores(*pairs([[3, 0], [0, 9]]), classes=["Rock", "Folk"]).intervals
    assert found == dict.fromkeys(("accuracy", "recall", "precision", "f1"), (1.0, 1.0))


def test_intervals_depend_on_the_seed_alone() -> None:
    cells = np.repeat(np.arange(9), [5, 1, 0, 2, 3, 1, 0, 0, 8])
    assert bootstrap_intervals(cells, 3, seed=3) == bootstrap_intervals(cells, 3, seed=3)
    assert bootstrap_intervals(cells, 3, seed=3) != bootstrap_intervals(cells, 3, seed=4)


def test_tracks_of_one_group_are_drawn_together() -> None:
    # Two artists, one of whom is always right and one never: 0, 1/2 or 1 of what is drawn is right.
    predictions, labels = pairs([[10, 0], [10, 0]])
    alone = scores(predictions, labels, ["Rock", "Folk"])
    by_artist = scores(predictions, labels, ["Rock", "Folk"], groups=["ann"] * 10 + ["ben"] * 10)
    assert by_artist.intervals["accuracy"] == (0.0, 1.0)
    assert alone.intervals["accuracy"] == pytest.approx((0.3, 0.7), abs=0.051)  # binomial, as above
    assert alone.accuracy == by_artist.accuracy == 0.5


def by_the_definitions(confusion: list[list[int]]) -> dict[str, float]:
    """Return accuracy, recall, precision and F1 from the true and false answers of each class, one by one."""
    predictions, labels = (found.tolist() for found in pairs(confusion))
    recalls, precisions, f1s = [], [], []
    for number in sorted({*predictions, *labels}):
        answers = [
            (number == label, number == guess) for guess, label in zip(predictions, labels, strict=True)
        ]
        hits, misses, alarms = (answers.count(kind) for kind in ((True, True), (True, False), (False, True)))
        recall = hits / (hits + misses) if hits + misses else 0.0
        precision = hits / (hits + alarms) if hits + alarms else 0.0
        recalls.append(recall)
        precisions.append(precision)
        f1s.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return {
        "accuracy": sum(map(int.__eq__, predictions, labels)) / len(labels),
        "recall": statistics.mean(recalls),
        "precision": statistics.mean(precisions),
        "f1": statistics.mean(f1s),
    }


def test_scores_of_many_samples_are_those_of_each_by_the_definitions() -> None:
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 4, size=(30, 4, 4)) * (rng.random((30, 4, 4)) < 0.4)
    confusions[:, 0, 0] += 1
    found = macro_scores(confusions)
    for place, confusion in enumerate(confusions):
        alone = scores(*pairs(confusion.tolist()), classes=list("abcd"))
        for name, expected in by_the_definitions(confusion.tolist()).items():
            assert found[name][place] == pytest.approx(expected), (name, confusion)
            assert getattr(alone, name) == pytest.approx(expected), (name, confusion)
