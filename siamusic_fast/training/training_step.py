"""The step of pre-training by itself, for whoever measures how long it takes."""

import torch
from torch import Tensor, nn

from siamusic_fast.config import PretrainConfig
from siamusic_fast.models.methods import method_of
from siamusic_fast.models.networks import place
from siamusic_fast.models.precision import autocast
from siamusic_fast.processes.world import World
from siamusic_fast.training.compiling import compiled
from siamusic_fast.training.pretrain import optimizer_of

Views = tuple[Tensor, Tensor]
"""Two views of a batch, float32 [B, 1, n_mels, frames] each."""


class TrainingStep:
    """The step of `pretrain` with `config` in one process, with torch.compile if it `compiles`.

    Nothing is logged or saved, and the learning rate stays at that of `config`.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, *, compiles: bool) -> None:
        torch.manual_seed(config.seed)
        self._device = device
        network = place(method_of(config), device)
        self._model: nn.Module = network
        self._optimizer = optimizer_of(config, network)
        if compiles:
            shape = (config.batch_size, 1, config.mel.n_mels, config.mel.frames)
            self._model = compiled(self._model, torch.zeros(shape, device=device), World(device=device))

    def __call__(self, views: Views) -> None:
        """Take one step."""
        with autocast(self._device):
            loss = self._model(*views).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
