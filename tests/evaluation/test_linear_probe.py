import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
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


def test_fewer_rows_than_features_have_the_minimum_of_scikit_learn() -> None:
    # Its C is 1 / (n penalty): it adds up the losses of the rows.
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    features = rng.standard_normal((40, 100)) + np.eye(3, 100)[labels] * 2
    fit = fit_linear(torch.tensor(features), torch.tensor(labels), 3, 0.05)
    x = StandardScaler().fit_transform(features)
    theirs = LogisticRegression(C=1 / (40 * 0.05), tol=1e-10, max_iter=10_000).fit(x, labels)
    assert fit.weight.numpy() == pytest.approx(theirs.coef_, abs=1e-5)
    expected = theirs.predict_proba(x)
    assert fit.logits(torch.tensor(features)).softmax(dim=1).numpy() == pytest.approx(expected, abs=1e-5)


def test_a_fit_to_tags_is_a_logistic_regression_of_each() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 5))
    tags = (features[:, :2] + rng.standard_normal((60, 2)) > 0.3).astype(np.float32)
    fit = fit_linear(torch.tensor(features), torch.tensor(tags), 2, 0.05)
    x = StandardScaler().fit_transform(features)
    for place in range(2):
        theirs = LogisticRegression(C=1 / (60 * 0.05), tol=1e-10, max_iter=10_000).fit(x, tags[:, place])
        assert fit.weight[place].numpy() == pytest.approx(theirs.coef_[0], abs=1e-5)
        assert fit.bias[place].item() == pytest.approx(theirs.intercept_[0], abs=1e-5)


def test_the_penalty_is_the_one_that_does_best_on_groups_left_out() -> None:
    # One feature tells the class, faintly. Thirty others tell the artist, and learning the artists by heart
    # is right for tracks of the same ones, and wrong for others.
    rng = torch.Generator().manual_seed(0)
    artist = torch.arange(120) % 24
    labels = torch.randint(0, 2, (24,), generator=rng)[artist]
    features = torch.cat(
        [labels[:, None] + torch.randn(120, 1, generator=rng), torch.randn(24, 30, generator=rng)[artist]],
        dim=1,
    )
    penalties = (1e-4, 1.0)
    by_track = choose_linear(features, labels, 2, [""] * 120, penalties)
    by_artist = choose_linear(features, labels, 2, [str(number) for number in artist.tolist()], penalties)
    assert (by_track.penalty, by_artist.penalty) == (1e-4, 1.0)


def test_one_row_of_each_class_is_fitted_with_a_middling_penalty() -> None:
    features, labels = blobs(3, seed=0)
    fit = choose_linear(features, labels, 3, [""] * 3)
    assert fit.penalty == 0.1
    assert torch.equal(fit.predict(features), labels)
