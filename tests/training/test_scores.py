import pytest
import torch

from siamusic_fast.training.scores import scores


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
    assert found.confusion == ((5, 1, 0), (2, 3, 1), (0, 0, 8))
    folk = found.classes[1]
    assert (folk.name, folk.tracks) == ("Folk", 6)
    assert (folk.recall, folk.precision, folk.f1) == pytest.approx((3 / 6, 3 / 4, 6 / 10))


def test_a_class_that_occurs_nowhere_is_left_out_of_the_averages() -> None:
    found = scores(*pairs([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), classes=["Rock", "Folk", "Jazz"])
    assert found.recall == pytest.approx((3 / 4 + 4 / 4) / 2)
    assert found.precision == pytest.approx((3 / 3 + 4 / 5) / 2)
    assert found.classes[2].tracks == 0


def test_a_class_that_is_only_predicted_counts_with_zero() -> None:
    found = scores(*pairs([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), classes=["Rock", "Folk", "Jazz"])
    assert found.recall == pytest.approx((3 / 4 + 4 / 4 + 0) / 3)
    assert found.precision == pytest.approx((3 / 3 + 4 / 4 + 0) / 3)
