import math
from collections.abc import Iterator

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss

from siamusic_fast.models.heads import predictor, projector
from siamusic_fast.models.losses import byol_loss, negative_cosine, nt_xent_loss, simsiam_loss, vicreg_loss
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


def test_nt_xent_of_two_pairs_worked_by_hand() -> None:
    # The pairs are (a, a) and (b, b) with a and b at a right angle: each output has cosine 1 with its partner
    # and 0 with the two others, so each cross-entropy is log(1 + 2 exp(-1 / t)).
    z1 = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    for temperature in (0.1, 0.5):
        expected = math.log(1 + 2 * math.exp(-1 / temperature))
        assert nt_xent_loss(z1, 5 * z1, temperature).item() == pytest.approx(expected, rel=1e-2, abs=1e-7)


def test_vicreg_of_four_outputs_worked_by_hand() -> None:
    # Two equal dimensions, of variance 4/3: the views agree, deviations exceed 1, and the covariance of each
    # view is 4/3 twice off the diagonal, over 2 dimensions.
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert vicreg_loss(z, z).item() == pytest.approx(2 * (4 / 3) ** 2, rel=1e-6)
    # Moved by 0.5, the second view differs by a square of 0.25.
    assert vicreg_loss(z, z + 0.5).item() == pytest.approx(2 * (4 / 3) ** 2 + 25 * 0.25, rel=1e-6)
    # A tenth of it has deviation 0.1159 with the 1e-4 inside the root.
    deviation = math.sqrt(4 / 300 + 1e-4)
    expected = 25 * (1 - deviation) + 2 * (4 / 300) ** 2
    assert vicreg_loss(z / 10, z / 10).item() == pytest.approx(expected, rel=1e-5)


def test_byol_of_a_3_4_5_triangle() -> None:
    # The cosine is 24/25, and so both squared distances of the unit vectors are 2 - 48/25.
    p, z = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert byol_loss(p, p, z, z).item() == pytest.approx(2 * (2 - 48 / 25), rel=1e-5)
    unit = (p / p.norm() - z / z.norm()).square().sum().item()
    assert byol_loss(p, p, z, z).item() == pytest.approx(2 * unit, rel=1e-5)


def test_the_losses_are_those_of_lightly() -> None:
    z1, z2, z3, z4 = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent_loss(z1, z2, 0.2), NTXentLoss(temperature=0.2)(z1, z2))
    torch.testing.assert_close(vicreg_loss(z1 / 2, z2 / 2), VICRegLoss()(z1 / 2, z2 / 2))
    cosines = NegativeCosineSimilarity()
    expected = (cosines(z1, z4) + cosines(z2, z3)) / 2
    torch.testing.assert_close(simsiam_loss(z1, z2, z3, z4), expected)
    torch.testing.assert_close(byol_loss(z1, z2, z3, z4), 4 + 4 * expected)


def _collapse_after_training(*, stop_gradient: bool) -> float:
    """Train a small SimSiam on noisy points and return its last collapse measure, 1 being healthy."""
    torch.manual_seed(0)
    dim = 16
    encoder = torch.nn.Sequential(
        torch.nn.Linear(16, 64, bias=False), torch.nn.BatchNorm1d(64), torch.nn.ReLU()
    )
    network = torch.nn.Sequential(encoder, projector("simsiam", 64, dim))
    head = predictor("simsiam", dim)
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
