"""How many dimensions the outputs of a network use."""

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """Return how many dimensions `rows` [n, d] use: from 1 to the smaller of n - 1 and d.

    It is 0 if all rows are equal, and NaN if one is not finite.

    RankMe of Garrido et al. 2023, equation 2: the exponential of the entropy of the singular values, here of
    the rows less their mean. Outputs of a ReLU share a large mean, which would hide the other dimensions.
    """
    centered = rows.float() - rows.float().mean(dim=0)
    if not centered.isfinite().all():
        return centered.new_tensor(torch.nan)
    values = torch.linalg.svdvals(centered)
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank: Tensor = torch.special.entr(shares).sum().exp() * values.any()
    return rank
