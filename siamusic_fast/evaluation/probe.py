"""Probes of an encoder's frozen features, and of those of random encoders, which show what it learnt."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.config import BACKENDS
from siamusic_fast.evaluation.checks import check_probe
from siamusic_fast.evaluation.evaluate import RESULTS, results_folder
from siamusic_fast.evaluation.features import extract_features
from siamusic_fast.evaluation.knn import knn_predict
from siamusic_fast.evaluation.linear_probe import choose_linear
from siamusic_fast.evaluation.scores import Scores, scores
from siamusic_fast.models import networks
from siamusic_fast.models.pretrained import load_pretrained
from siamusic_fast.models.run_files import save_json
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

Labelled = tuple[Tensor, Tensor]
"""Features [tracks, d] and labels [tracks]."""


@dataclass(frozen=True, kw_only=True)
class EncoderProbes:
    """Scores of the probes of one encoder on the test split."""

    knn: Scores
    """Scores of the kNN probe."""
    linear: Scores
    """Scores of the linear probe."""
    penalty: float
    """Strength of the linear probe's L2 penalty, chosen on the validation split."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Probes of a pre-trained encoder and of two untrained ones with the same backbone."""

    folder: Path
    """Folder of the results."""
    data: str
    """Name of the corpus that the tracks are from."""
    backbone: str
    """Name of the encoders' network, such as resnet50."""
    checkpoint: str
    """Checkpoint of the run: `last` or `best`."""
    epoch: int
    """Epochs of pre-training behind the checkpoint."""
    pretrained_on: tuple[str, ...]
    """Splits that the encoder was pre-trained on."""
    pretrained: EncoderProbes
    """Probes of the pre-trained encoder."""
    random: EncoderProbes
    """Probes of an encoder with torchvision's own random weights, the usual baseline."""
    initial: EncoderProbes
    """Probes of the encoder that pre-training starts from: the same random weights, but the residual branches
    of a ResNet begin at zero."""

    @property
    def gain(self) -> float:
        """Accuracy of the linear probe minus that of the random encoder's."""
        return self.pretrained.linear.accuracy - self.random.linear.accuracy


def probe(
    run: Path | str,
    data: ShardSet | Path | str | None = None,
    out: Path | str | None = None,
    *,
    which: str = "last",
    seed: int = 0,
    backend: str = BACKENDS[0],
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ProbeResult:
    """Probe the encoder of the pre-training run `run`, `last` or `best`, and random ones beside it.

    Called in every process of `world`, which share the tracks; default: one process on the CPU. `data` is a
    shard set, its folder, or its name; by default the shards that the run was trained on, if they have
    labels. The features of a track are the mean over crops that cover it, up to 128; `backend` computes their
    spectrograms. The kNN probe has the labelled training tracks as its bank. The linear probe learns from
    them, with the penalty that does best on the validation tracks. Both are scored on the labelled test
    tracks.

    The encoders are in evaluation mode, where the batch norms of the random ones have mean 0 and variance 1.
    The random weights depend on `seed`, which is that of the bootstrap too.

    Results go to `out`, which must be empty or with `force` may hold earlier results. The default is the
    folder probe in `run`, where they replace earlier results.

    Raises DataError if `run` holds no such encoder, if the shards have fewer than two classes or a split
    without labelled tracks; ConfigError if the features do not fit the shards.
    """
    world, run = world or World(), Path(run)
    shard_set = check_probe(run, data, out, backend=backend, force=force)
    pretrained = load_pretrained(run, which)
    folder = results_folder(out, run / "probe", world, force=force)

    random, initial = (random_encoder(pretrained.backbone, seed, world.device) for _ in range(2))
    encoders = [pretrained.build_encoder(world.device), activate_branches(random).eval(), initial.eval()]
    tracks: list[dict[str, Labelled]] = [{} for _ in encoders]
    for split in SPLITS:  # read once, for all encoders
        _, outputs, labels, *_ = extract_features(
            lambda mels: torch.cat([encoder(mels) for encoder in encoders], dim=1),
            shard_set,
            split,
            pretrained.frontend,
            backend=backend,
            world=world,
            progress=progress,
        )
        for of_one, features in zip(tracks, outputs.chunk(len(encoders), dim=1), strict=True):
            of_one[split] = features, labels
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
        save_json(folder / RESULTS, as_json(result))
    return result


def random_encoder(backbone: str, seed: int, device: torch.device) -> nn.Module:
    """Return the encoder that pre-training with `seed` starts from; no global random generator is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = networks.encoder(backbone)
    return networks.place(model, device)


def activate_branches(model: nn.Module) -> nn.Module:
    """Set the batch norm weights that `zero_init_residual` made 0 to 1, and return `model`."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and not part.weight.any():
            nn.init.ones_(part.weight)
    return model


def as_json(result: ProbeResult) -> dict[str, object]:
    """Return `result` as plain values."""
    return {**dataclasses.asdict(result), "folder": str(result.folder), "gain": result.gain}


def _probes(tracks: dict[str, Labelled], classes: tuple[str, ...], seed: int) -> EncoderProbes:
    """Fit the probes to the features of one encoder, by split, and score them on the test split."""
    features, labels = tracks["test"]
    linear = choose_linear(tracks["training"], tracks["validation"], len(classes))
    return EncoderProbes(
        knn=scores(knn_predict(features, *tracks["training"], len(classes)), labels, classes, seed=seed),
        linear=scores(linear.predict(features), labels, classes, seed=seed),
        penalty=linear.penalty,
    )
