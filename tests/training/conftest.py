"""Pre-training runs that tests share, made without training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from siamusic_fast import config as settings
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.shards.fma import load_fma
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.training import checkpoint
from siamusic_fast.training.models import SimSiam

MEL = MelConfig(seconds=0.5, n_mels=16, hop_length=512)
"""Small features, 16 x 22, so that tests are quick."""
FRONTEND = Frontend(mel=MEL, mean=-40.0, std=15.0)


def save_run(folder: Path, seed: int = 0, file: str = "checkpoint.pt", **options: Any) -> Path:
    """Write what pre-training with `options` leaves: here a network that has learnt nothing yet."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        simsiam = SimSiam("resnet18")
    config = PretrainConfig(**{"mel": MEL, "backbone": "resnet18", **options})
    frontend = Frontend(mel=config.mel, mean=-40.0, std=15.0, short_tracks=config.short_tracks)
    values = {
        "config": settings.dump(config),
        "frontend": frontend.dump(),
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


@pytest.fixture(scope="session")
def segments(fma_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tracks of `shard_set` in segments: 6 to 9 s are 2 or 3 of up to 3 s."""
    folder = tmp_path_factory.mktemp("segments") / "fma_medium"
    return pack(load_fma(fma_corpus), folder, PackConfig(min_seconds=2.0, max_seconds=3.0), workers=1)
