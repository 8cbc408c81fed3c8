"""The losses of SimSiam, SimCLR, VICReg and BYOL, each of the outputs of two views."""

import torch
import torch.nn.functional as F
from torch import Tensor

VICREG_WEIGHTS = (25.0, 25.0, 1.0)
"""Weights of invariance, variance and covariance; Bardes, Ponce, LeCun 2022, section 4.2."""


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return equation 1 of Kim, Hong, Lee 2022: D(p, z) = -(p / |p|) · (z / |z|), between -1 and 1.

    p and z are [B, d]; the result is a scalar, the mean over the batch.
    """
    return -F.cosine_similarity(p, z, dim=1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Return equation 2 of Kim, Hong, Lee 2022: L = 1/2 D(p1, stopgrad(z2)) + 1/2 D(p2, stopgrad(z1)).

    It is -1 if the views agree. It is Chen & He 2021, equation 4. Without the stop-gradient, the network
    would soon give the same output for all inputs.
    """
    return (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2


def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return the mean of equation 1 of Chen et al. 2020 (SimCLR) over both views of every pair.

    z1 and z2 are [B, d]. Of the 2 B - 1 other outputs, each should be most similar, by cosine, to the one of
    its pair: the loss is the cross-entropy of similarity / temperature, 0 at the least.
    """
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


def vicreg_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Return equation 6 of Bardes, Ponce, LeCun 2022: 25 s(z1, z2) + 25 [v(z1) + v(z2)] + c(z1) + c(z2).

    z1 and z2 are [B, d]. s is their mean squared difference; v, equation 1, asks each dimension for a
    standard deviation of 1; c, equation 4, asks the dimensions for no covariance. As in the authors' code, s
    is a mean over the dimensions too, and v counts half.
    """
    invariance, variance, covariance = VICREG_WEIGHTS
    loss = invariance * F.mse_loss(z1.float(), z2.float())
    for z in (z1.float(), z2.float()):
        deviations = (z.var(dim=0) + 1e-4).sqrt()
        covariances = z.T.cov()
        off_diagonal = covariances.square().sum() - covariances.diagonal().square().sum()
        loss = loss + variance * F.relu(1 - deviations).mean() / 2 + covariance * off_diagonal / z.shape[1]
    return loss


def byol_loss(q1: Tensor, q2: Tensor, target1: Tensor, target2: Tensor) -> Tensor:
    """Return equation 2 of Grill et al. 2020 (BYOL) for both orders of the views, 0 if they agree.

    The predictions q and the target network's outputs are [B, d]: each prediction is of the other view's
    target, and |q / |q| - t / |t||² = 2 + 2 D(q, t). No gradient goes to the targets.
    """
    distances = negative_cosine(q1, target2.detach()) + negative_cosine(q2, target1.detach())
    return 4 + 2 * distances
