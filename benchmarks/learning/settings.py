"""What the study trains: small features and a small network, so that a run takes minutes on two cores."""

from dataclasses import dataclass
from typing import Any

from siamusic_fast.config import FinetuneConfig, MelConfig, PretrainConfig, ProbeConfig, from_preset

MEL = MelConfig(seconds=3.0, n_fft=2048, hop_length=2048, n_mels=40)
STEPS = 400
BATCH_SIZE = 60
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "music": {},
    "music, simclr": {"method": "simclr"},
    "paper": {"preset": "paper"},
    "simsiam": {"preset": "simsiam"},
}
"""What each configuration changes; the preset is music where none is named."""


@dataclass(frozen=True)
class Encoder:
    """An encoder of the study."""

    name: str
    """Its configuration."""
    seed: int = 0
    steps: int = STEPS
    tracks: int | None = None
    """Number of tracks that it learns from; None for all."""


ENCODERS = (
    Encoder("music"),
    Encoder("music", seed=1),
    Encoder("music, simclr"),
    Encoder("music, simclr", seed=1),
    Encoder("paper"),
    Encoder("simsiam"),
)
"""Encoders that are compared with the baselines."""
CURVES = (
    Encoder("music", tracks=60),
    Encoder("music, simclr", tracks=60),
    Encoder("music", steps=100),
    Encoder("music, simclr", steps=100),
)
"""Encoders that show what more tracks and more steps do."""
PROBE = ProbeConfig(cv=2, retrieval_crops=20, backend="torch")
FINETUNE = FinetuneConfig(epochs=30, batch_size=32, backend="torch", logger=("none",))
LABEL_FRACTIONS = {0.1: (0, 1), 1.0: (0,)}
"""Shares of the labels that classifiers learn from, and the seeds of each."""


def pretraining(encoder: Encoder, tracks: int) -> PretrainConfig:
    """Return how `encoder` is trained on so many tracks."""
    changes = dict(CONFIGURATIONS[encoder.name])
    preset = changes.pop("preset", "music")
    batch_size = min(BATCH_SIZE, tracks)
    running = {"backend": "torch", "knn_every": 0, "logger": ("none",), "checkpoint_minutes": 60.0}
    return from_preset(
        preset,
        1,
        tracks,
        **{
            "mel": MEL,
            "backbone": "resnet18",
            "batch_size": batch_size,
            "epochs": -(-encoder.steps // (tracks // batch_size)),
            "seed": encoder.seed,
            **running,
            **changes,
        },
    )
