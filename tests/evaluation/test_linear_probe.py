import pytest
import torch
from torch.nn.functional import one_hot

from siamusic_fast.evaluation.linear_probe import choose_linear, fit_linear


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points around three corners of a cube, far from the origin and of several scales, and labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    points = 3 * one_hot(labels, 3) + torch.randn(n, 3, generator=rng)
    return points * torch.tensor([1.0, 100.0, 0.01]) + 7, labels


@pytest.mark.parametrize("penalty", [0.001, 0.1, 10.0])
def test_the_fit_is_where_the_gradient_is_zero(penalty: float) -> None:
    # d/dW = (P - Y)^T X / n + penalty W and d/db = mean(P - Y), for standardized X.
    features, labels = blobs(60, seed=0)
    fit = fit_linear(features, labels, 3, penalty)
    x = features.double()
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    error = fit.logits(features).softmax(dim=1) - one_hot(labels, 3)
    torch.testing.assert_close(
        error.T @ x / 60 + penalty * fit.weight, torch.zeros(3, 3).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(error.mean(dim=0), torch.zeros(3).double(), atol=1e-6, rtol=0)


def test_units_of_the_features_do_not_count_and_constant_ones_do_no_harm() -> None:
    features, labels = blobs(60, seed=0)
    fit = fit_linear(features, labels, 3, 0.01)
    other = torch.cat([1000 * features - 5, torch.full((60, 1), 3.0)], dim=1)
    again = fit_linear(other, labels, 3, 0.01)
    torch.testing.assert_close(again.logits(other), fit.logits(features), atol=1e-3, rtol=1e-3)


def test_the_penalty_is_the_one_that_does_best_on_validation() -> None:
    features, labels = blobs(60, seed=0)
    learnt = choose_linear((features, labels), blobs(300, seed=1), 3, penalties=(0.01, 1e6))
    assert learnt.penalty == 0.01
    held = choose_linear((features, labels), (features, (labels + 1) % 3), 3, penalties=(0.01, 1e6))
    assert held.penalty == 1e6  # what is learnt from these is wrong there: the less, the better
