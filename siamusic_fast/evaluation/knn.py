"""The nearest neighbors of a track in the space of an encoder: what features are worth without training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamusic_fast.config import BACKENDS
from siamusic_fast.evaluation.features import TrackOutputs, evaluating, track_outputs
from siamusic_fast.frontend import Frontend
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

NEIGHBORS = 20
TEMPERATURE = 0.07
"""Of Wu et al. 2018, section 3.4, who take 200 neighbors of 1.3 million pictures."""
CROPS = 2
"""Of each track, for a look during pre-training."""
_QUERIES_PER_PASS = 1024


def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    *,
    k: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return the class that the k nearest of `bank` vote for, int64 [n]; Wu et al. 2018, section 3.4.

    `features` are [n, d], `bank` is [m, d] and `bank_labels` [m]. Near is a high cosine s, and a neighbor's
    vote weighs exp(s / temperature). Of a bank smaller than `k`, all vote.
    """
    directions, labels = F.normalize(bank.float(), dim=1), bank_labels.to(bank.device)
    predictions = []
    for queries in torch.split(features.float(), _QUERIES_PER_PASS):
        cosines = F.normalize(queries, dim=1) @ directions.T
        nearest = cosines.topk(min(k, len(bank)), dim=1)
        votes = cosines.new_zeros(len(queries), classes)
        votes.scatter_add_(1, labels[nearest.indices], (nearest.values / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_possible(shard_set: ShardSet) -> bool:
    """Whether `shard_set` has what `knn_accuracy` needs: two classes, labels to learn and to check."""
    splits = [shard_set.splits.get(split, ()) for split in ("training", "validation")]
    return len(shard_set.classes) > 1 and all(any(shard.labelled for shard in shards) for shards in splits)


def knn_accuracy(
    encoder: nn.Module,
    shard_set: ShardSet,
    frontend: Frontend,
    *,
    crops: int | None = CROPS,
    k: int = NEIGHBORS,
    backend: str = BACKENDS[0],
    batch_size: int | None = None,
    world: World | None = None,
    progress: Progress = SILENT,
) -> float:
    """Return how many of the labelled validation tracks their neighbors in training name rightly, 0 to 1.

    Segments of a track count as one. Called in every process of `world`, each of which computes its part;
    `encoder` is the module itself, not its DistributedDataParallel. For `crops` and `batch_size` see
    `TrackReader`. Leaves the encoder's mode and torch's random generators as they are.
    """

    def features(split: str) -> TrackOutputs:
        return track_outputs(
            encoder,
            shard_set,
            split,
            frontend,
            crops=crops,
            backend=backend,
            batch_size=batch_size,
            world=world,
            progress=progress,
        )

    with evaluating(encoder):
        _, bank, bank_labels = features("training")
        _, found, labels = features("validation")
    predictions = knn_predict(found, bank, bank_labels, len(shard_set.classes), k=k)
    return int((predictions == labels).sum()) / len(labels)
