"""Pre-training runs that tests share, made without training."""

from pathlib import Path

import pytest
import torch

from siamusic_fast import config as settings
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.training import checkpoint
from siamusic_fast.training.models import SimSiam

MEL = MelConfig(seconds=0.5, n_mels=16, hop_length=512)
"""Small features, 16 x 22, so that tests are quick."""


def save_run(folder: Path, seed: int = 0, file: str = "checkpoint.pt") -> Path:
    """Write what pre-training leaves: here a network that has learnt nothing yet."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        simsiam = SimSiam("resnet18")
    config = PretrainConfig(mel=MEL, backbone="resnet18")
    values = {
        "config": settings.dump(config),
        "normalisation": {"mean": -40.0, "deviation": 15.0},
        "encoder": simsiam.encoder.state_dict(),
        "projector": simsiam.projector.state_dict(),
        "epoch": 3,
    }
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / file, "pretraining", values)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "pretrained")
