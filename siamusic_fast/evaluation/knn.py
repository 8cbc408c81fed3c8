"""A kNN classifier on the features of an encoder, which measures them without any training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamusic_fast.config import BACKENDS
from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.features import extract_features
from siamusic_fast.evaluation.standardize import scaling_of
from siamusic_fast.evaluation.tag_scores import macro_aucs
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.networks import evaluating
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet

NEIGHBORS = 20
TEMPERATURE = 0.07
"""Temperature of Wu et al. 2018, section 3.4, who take 200 neighbors of 1.3 million pictures."""
CROPS_PER_TRACK = 2
"""Crops of each track for a kNN accuracy during pre-training."""
_QUERIES_PER_PASS = 1024


def knn_votes(
    features: Tensor,
    bank: Tensor,
    bank_targets: Tensor,
    *,
    k: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return the weighted mean of the targets of the k nearest of `bank`, float32 [n, t].

    `features` are [n, d], `bank` is [m, d] and `bank_targets` [m, t], such as 1 for the class of each and 0
    for others, or its tags. All features are centered and scaled by mean and standard deviation of the bank:
    the cosines of raw outputs of a ReLU are all near 1, where no temperature tells them apart. The nearest
    have the highest cosine s, and a neighbor's weight is exp(s / temperature), which Wu et al. 2018, section
    3.4, take for cosines of raw features. If the bank has fewer than `k`, all vote.
    """
    scaled = scaling_of(bank)
    directions, targets = F.normalize(scaled(bank).float(), dim=1), bank_targets.float().to(bank.device)
    votes = []
    for queries in torch.split(features, _QUERIES_PER_PASS):
        cosines = F.normalize(scaled(queries).float(), dim=1) @ directions.T
        nearest = cosines.topk(min(k, len(bank)), dim=1)
        weights = (nearest.values / temperature).softmax(dim=1)
        votes.append(torch.einsum("qk,qkt->qt", weights, targets[nearest.indices]))
    return torch.cat(votes)


def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    *,
    k: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return the class that the k nearest of `bank` vote for, int64 [n]; see `knn_votes`.

    `features` are [n, d], `bank` is [m, d] and `bank_labels` [m].
    """
    targets = F.one_hot(bank_labels, classes)
    return knn_votes(features, bank, targets, k=k, temperature=temperature).argmax(dim=1)


def knn_possible(shard_set: ShardSet) -> bool:
    """Whether `shard_set` has labels for training and validation: two classes, or tags that can be scored.

    A tag can be scored that some validation tracks have and others have not.
    """
    splits = [shard_set.splits.get(split, ()) for split in ("training", "validation")]
    if shard_set.target == "class":
        labelled = all(any(shard.labelled for shard in shards) for shards in splits)
        return len(shard_set.classes) > 1 and labelled
    try:
        tags = [open_tracks(shard_set, [split], target="tags").tags for split in ("training", "validation")]
    except DataError:
        return False
    return tags[1] is not None and bool((tags[1].any(axis=0) & ~tags[1].all(axis=0)).any())


def knn_name(shard_set: ShardSet) -> str:
    """Return the name under which `knn_score` is logged: knn is an accuracy, knn_roc_auc a macro ROC-AUC."""
    return "knn_roc_auc" if shard_set.target == "tags" else "knn"


def knn_score(
    encoder: nn.Module,
    shard_set: ShardSet,
    frontend: Frontend,
    *,
    backend: str = BACKENDS[0],
    batch_size: int | None = None,
    world: World | None = None,
) -> float:
    """Return the kNN accuracy, 0 to 1, of the validation tracks, with the training tracks as bank.

    If the shards have tags and no two classes, it is the macro ROC-AUC of the tags that the neighbors have.

    Segments of a track count as one. Called in every process of `world`, each of which computes its part;
    `encoder` is the module itself, not its DistributedDataParallel. `batch_size` is that of
    `FeatureExtractor`. Leaves the encoder's mode and torch's random generators as they are.
    """
    with evaluating(encoder):
        bank, validation = [
            extract_features(
                encoder,
                shard_set,
                split,
                frontend,
                crops=CROPS_PER_TRACK,
                backend=backend,
                batch_size=batch_size,
                world=world,
            )
            for split in ("training", "validation")
        ]
    if shard_set.target == "tags":
        return macro_aucs(knn_votes(validation.features, bank.features, bank.tags), validation.tags)[0]
    predictions = knn_predict(validation.features, bank.features, bank.labels, len(shard_set.classes))
    return float((predictions == validation.labels).double().mean())
