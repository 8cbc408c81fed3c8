"""The loaders of either backend under one name, for tests of what both promise."""

from typing import Any

import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.torch_backend import TorchLabelledLoader, TorchTrackLoader, TorchTwoViewLoader
from siamusic_fast.shards.manifest import ShardSet

BACKENDS = ("dali", "torch")
MEL = MelConfig(seconds=1.0)
IN_DECIBELS = Normalisation(0.0, 1.0)
_DEFAULTS = {"mel": MEL, "normalisation": IN_DECIBELS, "batch_size": 4, "seed": 3, "threads": 1}


def two_views(backend: str, shard_set: ShardSet, **options: Any) -> TwoViewLoader | TorchTwoViewLoader:
    options = {**_DEFAULTS, **options}
    if backend == "dali":
        return TwoViewLoader(shard_set, **options)
    return TorchTwoViewLoader(shard_set, **options)


def labelled(backend: str, shard_set: ShardSet, **options: Any) -> LabelledLoader | TorchLabelledLoader:
    options = {**_DEFAULTS, **options}
    if backend == "dali":
        return LabelledLoader(shard_set, **options)
    return TorchLabelledLoader(shard_set, **options)


def whole_tracks(backend: str, shard_set: ShardSet, **options: Any) -> TrackLoader | TorchTrackLoader:
    options = {**_DEFAULTS, **options}
    if backend == "dali":
        return TrackLoader(shard_set, **options)
    return TorchTrackLoader(shard_set, **options)


def take(loader: Any, batches: int) -> list[torch.Tensor]:
    """Return the next `batches`, of as many epochs as it takes, both tensors of each as one row."""
    taken: list[torch.Tensor] = []
    while len(taken) < batches:
        for one, other in loader:
            taken.append(torch.cat([one.flatten(), other.flatten()]))
            if len(taken) == batches:
                break
    return taken


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return whether two lists of tensors are equal, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def labels_of(loader: Any) -> list[int]:
    """Return the labels of one epoch."""
    return [int(label) for _, batch in loader for label in batch]
