import numpy as np
import pytest
import torch

from siamusic_fast.evaluation.effective_rank import effective_rank


def test_the_effective_rank_counts_directions_of_equal_size() -> None:
    # 2 k rows, one each way along k axes: k equal singular values, whatever the common offset.
    for k in (1, 5, 16):
        axes = torch.eye(16)[:k]
        rows = torch.cat([axes, -axes]) * 3
        assert effective_rank(rows).item() == pytest.approx(k, rel=1e-4)
        assert effective_rank(rows + 100).item() == pytest.approx(k, rel=1e-3)


def test_the_effective_rank_of_unequal_directions_is_that_of_their_entropy() -> None:
    # Singular values in the ratio 3 to 1, shares 3/4 and 1/4: exp of 0.5623 nats.
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert effective_rank(rows).item() == pytest.approx(4 / 3**0.75, rel=1e-5)


def test_outputs_all_the_same_have_no_rank_and_gaussian_ones_nearly_all() -> None:
    assert effective_rank(torch.full((8, 4), 2.5)).item() == 0
    rows = np.random.default_rng(0).standard_normal((400, 32))
    shares = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    shares /= shares.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(torch.from_numpy(rows)).item() == pytest.approx(expected, rel=1e-4)
    assert 31 < expected < 32
