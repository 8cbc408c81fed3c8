"""The loss of SimSiam: equations 1 and 2 of Kim, Hong, Lee 2022 (and of Chen & He 2021)."""

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return equation 1, averaged over the batch: D(p, z) = -(p / |p|) · (z / |z|), between -1 and 1.

    p and z are [B, d]; the result is a scalar.
    """
    return -F.cosine_similarity(p, z, dim=1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Return equation 2: L = 1/2 D(p1, stopgrad(z2)) + 1/2 D(p2, stopgrad(z1)); -1 if the views agree.

    Without the stop-gradient, the network would soon give the same output for all inputs.
    """
    return (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
