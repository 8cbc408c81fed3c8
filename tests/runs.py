"""Pre-training runs and classifiers that tests share, made without training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from siamusic_fast import config as settings
from siamusic_fast.config import Architecture, MelConfig, PretrainConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint
from siamusic_fast.models.methods import method_of
from siamusic_fast.models.networks import Classifier

MEL = MelConfig(seconds=0.5, n_mels=16, hop_length=512)
"""Small features, 16 x 22, so that tests are quick."""
FRONTEND = Frontend(mel=MEL, mean=-40.0, std=15.0)


def save_run(folder: Path, seed: int = 0, file: str = "checkpoint.pt", **options: Any) -> Path:
    """Write what pre-training with `options` leaves: here a network that has learnt nothing yet."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = PretrainConfig(**{"mel": MEL, "seed": seed, **asdict(Architecture("resnet18")), **options})
        network = method_of(config)
    frontend = Frontend(mel=config.mel, mean=-40.0, std=15.0, short_tracks=config.short_tracks)
    values = {
        "config": settings.dump(config),
        "frontend": frontend.dump(),
        "encoder": network.encoder.state_dict(),
        "projector": network.projector.state_dict(),
        "epoch": 3,
    }
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / file, "pretraining", values)
    return folder


def save_classifier(folder: Path, **values: object) -> Path:
    """Write a classifier that has learnt nothing, with `values`."""
    head, features = str(values.get("head", "linear")), str(values.get("features", "encoder"))
    values = {"classes": ["Electronic", "Folk", "Rock"], **values}
    classes = len(values["classes"])  # type: ignore[arg-type]
    saved = {
        **{
            "architecture": {"backbone": "resnet18"},
            "head": head,
            "features": features,
            "epoch": 1,
            "projection": {},
        },
        "target": "class",
        "frontend": FRONTEND.dump(),
        "pretrained_on": ["training"],
        "model": Classifier(Architecture("resnet18"), classes, head=head, features=features).state_dict(),
    }
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / "classifier.pt", "classifier", {**saved, **values})
    return folder
