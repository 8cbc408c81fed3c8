"""What the study trains: small features and a small network, so that a run takes minutes on two cores."""

from typing import Any

from siamusic_fast.config import FinetuneConfig, MelConfig, PretrainConfig, ProbeConfig, from_preset

MEL = MelConfig(seconds=3.0, n_fft=2048, hop_length=2048, n_mels=40)
STEPS = 400
BATCH_SIZE = 60
SEEDS = {"music": (0, 1), "music, simclr": (0, 1), "paper": (0,)}
"""Seeds of each configuration."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "music": {},
    "music, simclr": {"method": "simclr"},
    "paper": {"preset": "paper"},
}
"""What each configuration changes; the preset is music where none is named."""
PROBE = ProbeConfig(cv=2, retrieval_crops=20, backend="torch")
FINETUNE = FinetuneConfig(epochs=30, batch_size=32, backend="torch", logger=("none",))
LABEL_FRACTIONS = {0.1: (0, 1), 1.0: (0,)}
"""Shares of the labels that classifiers learn from, and the seeds of each."""


def pretraining(name: str, seed: int, tracks: int) -> PretrainConfig:
    """Return the configuration `name` for a corpus of so many training tracks."""
    changes = dict(CONFIGURATIONS[name])
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
            "epochs": -(-STEPS // (tracks // batch_size)),
            "seed": seed,
            **running,
            **changes,
        },
    )
