"""What pre-training added: probes of an encoder's frozen features, beside those of a random one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from siamusic_fast.config import BACKENDS
from siamusic_fast.evaluation.evaluate import RESULTS, check_enough_classes, results_folder
from siamusic_fast.evaluation.features import track_outputs
from siamusic_fast.evaluation.knn import knn_predict
from siamusic_fast.evaluation.linear_probe import choose_linear
from siamusic_fast.evaluation.scores import Scores, scores
from siamusic_fast.models import checkpoint
from siamusic_fast.models import networks as models
from siamusic_fast.models.pretrained import Pretrained, load_pretrained
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

SPLITS = ("training", "validation", "test")

Tracks = tuple[Tensor, Tensor]
"""Features [tracks, width] and labels [tracks]."""


@dataclass(frozen=True, kw_only=True)
class EncoderProbes:
    """How the probes of one encoder fared on the test split."""

    knn: Scores
    linear: Scores
    penalty: float
    """Strength of the linear probe's L2 penalty, chosen on the validation split."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Probes of a pre-trained encoder and of two of the same kind that have learnt nothing."""

    folder: Path
    data: str
    """Corpus that the tracks are from."""
    backbone: str
    checkpoint: str
    """Which of the run's encoders: `last` or `best`."""
    epoch: int
    """Epochs of pre-training behind it."""
    pretrained_on: tuple[str, ...]
    """Splits that it learnt from."""
    pretrained: EncoderProbes
    random: EncoderProbes
    """With torchvision's own random weights: the usual baseline."""
    initial: EncoderProbes
    """As pre-training starts: the same weights, but residual branches of a ResNet begin at zero."""

    @property
    def gain(self) -> float:
        """How much more accurate the linear probe is than that of the random encoder."""
        return self.pretrained.linear.accuracy - self.random.linear.accuracy


def probe(
    run: Path,
    shard_set: ShardSet,
    out: Path | None = None,
    *,
    which: str = "last",
    seed: int = 0,
    backend: str = BACKENDS[0],
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ProbeResult:
    """Probe the encoder of the pre-training run `run`, `last` or `best`, and random ones beside it.

    Called in every process of `world`, which share the tracks; default: one process on the CPU. A track's
    features are those of crops that cover it, up to 128, averaged; `backend` computes their spectrograms. The
    kNN probe looks at the labelled training tracks; the linear one learns from them, with the penalty that
    does best on validation. Both are scored on the labelled test tracks, which nothing is chosen by.

    All are in evaluation mode, where the batch norms of the random encoders have the statistics that they
    start with: mean 0 and variance 1. Their weights depend on `seed`, which is that of the bootstrap too.
    Results go to `out`, with `force` in the place of earlier ones; by default to the folder probe in `run`,
    where they replace earlier ones.

    Raises DataError if `run` holds no such encoder, if the shards have fewer than two classes or a split
    without labelled tracks; ConfigError if the features do not fit the shards.
    """
    world = world or World()
    check_enough_classes(shard_set, "a probe")
    pretrained = load_pretrained(run, which)
    folder = world.once(lambda: results_folder(out, run / "probe", force=force))

    random, initial = (random_encoder(pretrained.backbone, seed, world.device) for _ in range(2))
    encoders = [pretrained.build_encoder(world.device), activate_branches(random), initial]
    tracks = _features(encoders, pretrained, shard_set, backend, world, progress)
    probes = [_probes(of_one, shard_set.classes, seed) for of_one in tracks]
    result = ProbeResult(
        folder=folder,
        data=shard_set.source,
        backbone=pretrained.backbone,
        checkpoint=which,
        epoch=pretrained.epoch,
        pretrained_on=pretrained.splits,
        pretrained=probes[0],
        random=probes[1],
        initial=probes[2],
    )
    if world.leads:
        checkpoint.save_json(result.folder / RESULTS, as_json(result))
    return result


def random_encoder(backbone: str, seed: int, device: torch.device) -> nn.Module:
    """Return what pre-training starts from; depends on `seed` alone and draws from no global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _ = models.encoder(backbone)
    return models.place(model, device)


def activate_branches(model: nn.Module) -> nn.Module:
    """Let the residual branches that start at zero count, as without `zero_init_residual`; return `model`."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and not part.weight.any():
            nn.init.ones_(part.weight)
    return model


def as_json(result: ProbeResult) -> dict[str, object]:
    """Return `result` as plain values."""
    return {**dataclasses.asdict(result), "folder": str(result.folder), "gain": result.gain}


def _features(
    encoders: Sequence[nn.Module],
    pretrained: Pretrained,
    shard_set: ShardSet,
    backend: str,
    world: World,
    progress: Progress,
) -> list[dict[str, Tracks]]:
    """Return, for each of `encoders`, the tracks of each split as it sees them; all are read once."""
    found: list[dict[str, Tracks]] = [{} for _ in encoders]
    for encoder in encoders:
        encoder.eval()
    for split in SPLITS:
        _, outputs, labels = track_outputs(
            lambda mels: torch.cat([encoder(mels) for encoder in encoders], dim=1),
            shard_set,
            split,
            pretrained.frontend,
            backend=backend,
            world=world,
            progress=progress,
        )
        for tracks, features in zip(found, outputs.chunk(len(encoders), dim=1), strict=True):
            tracks[split] = features, labels
    return found


def _probes(tracks: dict[str, Tracks], classes: tuple[str, ...], seed: int) -> EncoderProbes:
    features, labels = tracks["test"]
    linear = choose_linear(tracks["training"], tracks["validation"], len(classes))
    return EncoderProbes(
        knn=scores(knn_predict(features, *tracks["training"], len(classes)), labels, classes, seed=seed),
        linear=scores(linear.predict(features), labels, classes, seed=seed),
        penalty=linear.penalty,
    )
