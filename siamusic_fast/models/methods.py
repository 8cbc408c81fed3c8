"""The methods that pre-train an encoder: its heads, and how the loss of two views is made."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from siamusic_fast.config import PretrainConfig
from siamusic_fast.models import heads, networks
from siamusic_fast.models.losses import byol_loss, nt_xent_loss, simsiam_loss, vicreg_loss
from siamusic_fast.processes.world import rows_of_all

TARGET_MOMENTUM = 0.996
"""Momentum of BYOL's target network at the start; Grill et al. 2020, section 3.2."""


class Output(NamedTuple):
    """What a method makes of a batch of two views."""

    loss: Tensor
    """Scalar."""
    projections: Tensor
    """Outputs of the projector for the first view, [B, width]."""
    features: Tensor
    """Outputs of the encoder for the first view, [B, dim]."""


class Method(nn.Module):
    """An encoder and a projector behind it: two views [B, 1, n_mels, frames] make an `Output`.

    Each view goes through the network by itself, so that batch norm has statistics for each of them. In
    several processes `simclr` and `vicreg` compare the outputs of all processes, as with one large batch.
    """

    has_predictor = False
    """Whether a predictor follows the projector."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.encoder = networks.encoder(config.architecture)
        self.projector = heads.projector(config.method, self.encoder.dim, config.width)
        if self.has_predictor:
            self.predictor = heads.predictor(config.method, config.width)
        self._temperature = config.temperature

    def forward(self, view1: Tensor, view2: Tensor) -> Output:
        features1, features2 = self.encoder(view1), self.encoder(view2)
        z1, z2 = self.projector(features1), self.projector(features2)
        return Output(self.loss(z1, z2, view1, view2), z1, features1)

    def loss(self, z1: Tensor, z2: Tensor, view1: Tensor, view2: Tensor) -> Tensor:
        """Return the loss of the projections z1 and z2 of two views."""
        raise NotImplementedError

    def after_step(self, done: float) -> None:
        """Follow a step of the optimizer; `done` is the share of all steps that were taken, 0 to 1."""


class SimSiam(Method):
    """The siamese network of Chen & He 2021, as Kim, Hong, Lee 2022 use it on mel spectrograms."""

    has_predictor = True

    def loss(self, z1: Tensor, z2: Tensor, view1: Tensor, view2: Tensor) -> Tensor:
        return simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)


class SimCLR(Method):
    """The contrastive method of Chen et al. 2020, which Spijkervet & Burgoyne 2021 (CLMR) use on music."""

    def loss(self, z1: Tensor, z2: Tensor, view1: Tensor, view2: Tensor) -> Tensor:
        return nt_xent_loss(rows_of_all(z1), rows_of_all(z2), self._temperature)


class VICReg(Method):
    """The method of Bardes, Ponce, LeCun 2022, whose loss keeps the dimensions apart."""

    def loss(self, z1: Tensor, z2: Tensor, view1: Tensor, view2: Tensor) -> Tensor:
        return vicreg_loss(rows_of_all(z1), rows_of_all(z2))


class BYOL(Method):
    """The method of Grill et al. 2020: predict what a slowly moving average of the network says."""

    has_predictor = True

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def loss(self, z1: Tensor, z2: Tensor, view1: Tensor, view2: Tensor) -> Tensor:
        with torch.no_grad():
            targets = [self.target_projector(self.target_encoder(view)) for view in (view1, view2)]
        return byol_loss(self.predictor(z1), self.predictor(z2), *targets)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Move the target network towards the other: equation 1 and section 3.2 of Grill et al. 2020."""
        momentum = 1 - (1 - TARGET_MOMENTUM) * (math.cos(math.pi * done) + 1) / 2
        pairs = (self.target_encoder, self.encoder), (self.target_projector, self.projector)
        for target, online in pairs:
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


METHODS: dict[str, type[Method]] = {"simsiam": SimSiam, "simclr": SimCLR, "vicreg": VICReg, "byol": BYOL}
"""The methods by the names that `PretrainConfig.method` has for them."""


def method_of(config: PretrainConfig) -> Method:
    """Return the network of `config.method`, with random weights."""
    return METHODS[config.method](config)
