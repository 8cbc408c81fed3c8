import math
from collections.abc import Iterator

import pytest
import torch

from siamusic_fast.models.losses import negative_cosine, simsiam_loss
from siamusic_fast.models.networks import predictor, projector
from siamusic_fast.training.run_log import collapse_measure
from siamusic_fast.training.schedules import cosine


def test_equation_1_of_a_3_4_5_triangle() -> None:
    # (3, 4)·(4, 3) = 24, and both have length 5; the second row points the other way.
    p = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    z = torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    assert negative_cosine(p[:1], z[:1]).item() == pytest.approx(-24 / 25)
    assert negative_cosine(p, z).item() == pytest.approx((-24 / 25 + 1) / 2)


def test_equation_2_is_the_mean_of_the_two_crossed_terms() -> None:
    p1, z2 = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])  # D = -24/25
    p2, z1 = torch.tensor([[5.0, 12.0]]), torch.tensor([[1.0, 0.0]])  # D = -5/13
    assert simsiam_loss(p1, p2, z1, z2).item() == pytest.approx(-(24 / 25 + 5 / 13) / 2)


def test_views_that_agree_have_the_lowest_loss() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])
    assert simsiam_loss(2 * z, 3 * z, z, z).item() == pytest.approx(-1)


def test_no_gradient_flows_through_the_stopped_side() -> None:
    p1, p2, z1, z2 = (torch.randn(4, 8, requires_grad=True) for _ in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()  # type: ignore[no-untyped-call]
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad is not None
    assert p2.grad is not None
    assert p1.grad.abs().sum() > 0
    assert p2.grad.abs().sum() > 0


def test_the_gradient_is_that_of_cosine_with_a_constant() -> None:
    # For p = (3, 4), z = (1, 0): d(-cos)/dp = -(z / |p| - (p·z) p / |p|^3) = (-16, 12) / 125, and half of it.
    p1 = torch.tensor([[3.0, 4.0]], requires_grad=True)
    other = torch.tensor([[1.0, 0.0]])
    simsiam_loss(p1, other, other, other).backward()  # type: ignore[no-untyped-call]
    assert p1.grad is not None
    torch.testing.assert_close(p1.grad, torch.tensor([[-16.0, 12.0]]) / 250)


def _collapse_after_training(*, stop_gradient: bool) -> float:
    """Train a small SimSiam on noisy points and return its last collapse measure, 1 being healthy."""
    torch.manual_seed(0)
    dim = 16
    encoder = torch.nn.Sequential(
        torch.nn.Linear(16, 64, bias=False), torch.nn.BatchNorm1d(64), torch.nn.ReLU()
    )
    network = torch.nn.Sequential(encoder, projector(64, dim))
    head = predictor(dim, dim // 4)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.03)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * cosine(step, 300)
        points = torch.randn(512, 16)
        z1, z2 = (network(points + torch.randn_like(points)) for _ in range(2))
        p1, p2 = head(z1), head(z2)
        loss = (
            simsiam_loss(p1, p2, z1, z2)
            if stop_gradient
            else (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return math.sqrt(dim) * collapse_measure(z1).item()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_outputs_collapse_without_the_stop_gradient_and_not_with_it() -> None:
    # Chen & He 2021, section 4.1 and figure 2. The last batch norm keeps the mean over the batch at 0, so at
    # least one of the 512 has to differ from all others: 0 itself is out of reach, 2 / sqrt(512) is not.
    assert _collapse_after_training(stop_gradient=False) < 0.4
    assert _collapse_after_training(stop_gradient=True) > 0.8
