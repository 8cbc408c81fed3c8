"""Fine-tuning: a pre-trained encoder and labelled shards in, a classifier out, top to bottom."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.evaluation.evaluate import CLASSIFIER, check_enough_classes
from siamusic_fast.evaluation.features import FeatureExtractor
from siamusic_fast.models import checkpoint
from siamusic_fast.models.networks import STAGES, Classifier, place, stage
from siamusic_fast.models.precision import autocast
from siamusic_fast.models.pretrained import load_pretrained
from siamusic_fast.pipelines.loaders import LabelledLoader, LoaderConfig
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.run_log import RunLog, check_finite


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What fine-tuning came to: the classifier that the protocol keeps, as the validation split sees it."""

    folder: Path
    protocol: str
    epochs: int
    kept_epoch: int
    """Whose classifier is kept, counted from 1: the best on validation, or the last."""
    accuracy: float
    """On the validation tracks, 0 to 1, of that epoch."""
    loss: float
    """Cross-entropy on the validation tracks, of that epoch."""
    tracks: int
    """Validation tracks; segments of one count as one."""
    seconds: float


def finetune(
    config: FinetuneConfig,
    run: Path,
    shard_set: ShardSet,
    out: Path | None = None,
    *,
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Train a classifier on the encoder of the pre-training run `run`.

    Called in every process of `world`; default: one process on the CPU. Learns from random crops of the
    labelled training tracks and is scored on whole validation tracks after each epoch. What is kept is for
    `config.protocol` to say:

    - `clean`: the epoch that is best on validation. The test split is left for `evaluate`.
    - `paper`: the last of a fixed number of epochs, 50 unless told otherwise; nothing is chosen. The paper's
      text names no way to choose. Its public code trains on the validation split and chooses by the loss on
      the test split, which this does not repeat; nor does `evaluate` leave out tracks, as that code does.

    Results go to `out`, by default the folder finetune in `run`; with `force`, in the place of earlier ones.
    Seeds torch's global random generator.

    Raises DataError if `run` holds no pre-training checkpoint, `out` is not empty, the shards have fewer than
    two classes or a split without labelled tracks, or the loss becomes infinite or NaN; ConfigError if the
    configuration does not fit the shards.
    """
    world = world or World()
    check_enough_classes(shard_set, "a classifier")
    pretrained = load_pretrained(run, config.checkpoint)
    torch.manual_seed(config.seed)

    training = LabelledLoader(
        shard_set,
        LoaderConfig(
            frontend=pretrained.frontend,
            batch_size=config.batch_size,
            backend=config.backend,
            device=world.device,
            seed=config.seed,
            rank=world.rank,
            world_size=world.world_size,
        ),
        recipe=config.aug,
        labels=config.label_fraction,
    )
    _check_batch(training.batch_size, config, world)
    validation = FeatureExtractor(
        shard_set,
        "validation",
        pretrained.frontend,
        backend=config.backend,
        batch_size=config.batch_size,
        world=world,
    )
    classifier = Classifier(
        pretrained.backbone, len(shard_set.classes), head=config.head, features=config.features
    )
    if not config.from_scratch:
        classifier.encoder.load_state_dict(pretrained.encoder)
        if config.features == "projector":
            classifier.projector.load_state_dict(pretrained.projector)
    for part in classifier.body:
        part.requires_grad_(not config.freeze)
    place(classifier, world.device)
    optimizer = torch.optim.Adam(
        learning_rates(classifier, config), weight_decay=config.weight_decay, fused=True
    )
    folder = out or run / "finetune"
    world.once(lambda: _start(folder, config, run, shard_set, world, force=force))
    model = world.wrap(classifier)

    started = time.perf_counter()
    kept_epoch, kept_accuracy, kept_loss = 0, -1.0, 0.0
    step, note = 0, ""
    tracks_per_epoch = len(training) * training.batch_size * world.world_size + validation.samples
    with (
        training,
        validation,
        RunLog(folder, active=world.leads) as log,
        (progress if world.leads else SILENT).task(
            "Fine-tuning", config.epochs * tracks_per_epoch, "tracks"
        ) as task,
    ):
        for epoch in range(1, config.epochs + 1):
            model.train()
            if config.freeze:
                for part in classifier.body:
                    part.eval()
            losses = []
            for mels, labels in training:
                with autocast(world.device):
                    loss = F.cross_entropy(model(mels), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                losses.append(loss.detach())
                task.advance(len(labels) * world.world_size, note=note)

            step_losses = world.mean(torch.stack(losses)).tolist()
            check_finite(step_losses, step, remedy=_remedy(config))
            classifier.eval()
            world.share_buffers(classifier)
            _, probabilities, truths = validation.extract(lambda mels: classifier(mels).softmax(dim=1), task)
            accuracy = float((probabilities.argmax(dim=1) == truths).float().mean())
            validation_loss = float(F.nll_loss(probabilities.clamp_min(1e-12).log(), truths))
            log.write(
                step,
                epoch=epoch,
                loss=sum(step_losses) / len(step_losses),
                validation_loss=validation_loss,
                validation_accuracy=accuracy,
                lr=config.lr,
            )
            note = f"epoch {epoch}: loss {validation_loss:.3f}, accuracy {accuracy:.1%} on validation"

            best = (accuracy, -validation_loss) > (kept_accuracy, -kept_loss)
            if best or config.protocol == "paper":
                kept_epoch, kept_accuracy, kept_loss = epoch, accuracy, validation_loss
                values = {
                    "backbone": pretrained.backbone,
                    "head": config.head,
                    "features": config.features,
                    "classes": list(shard_set.classes),
                    "frontend": pretrained.frontend.dump(),
                    "pretrained_on": [] if config.from_scratch else list(pretrained.splits),
                    "model": classifier.state_dict(),
                    "config": settings.dump(config),
                    "epoch": epoch,
                    "validation_accuracy": accuracy,
                    "validation_loss": validation_loss,
                }
                world.once(partial(checkpoint.save, folder / CLASSIFIER, "classifier", values))

    return FinetuneResult(
        folder=folder,
        protocol=config.protocol,
        epochs=config.epochs,
        kept_epoch=kept_epoch,
        accuracy=kept_accuracy,
        loss=kept_loss,
        tracks=len(validation.names),
        seconds=time.perf_counter() - started,
    )


def learning_rates(classifier: Classifier, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the parameters that learn and their rates, one group per rate, as optimizers take them.

    The head learns at `lr`. The projector, if it is there, and the encoder's last stage learn at
    `encoder_lr`, and each stage before at `layer_decay` of the rate of the stage after it (Clark et al. 2020,
    there for each layer).
    """
    of_encoder = config.lr if config.encoder_lr is None else config.encoder_lr
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, rest = name.partition(".")
        rate = config.lr if part == "head" else of_encoder
        if part == "encoder":
            rate *= config.layer_decay ** (STAGES - 1 - stage(rest))
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _check_batch(batch_size: int, config: FinetuneConfig, world: World) -> None:
    """Raise ConfigError if `batch_size`, which the loader made fit the tracks, is none for batch norm."""
    if batch_size < 2 and not config.freeze:
        raise ConfigError(
            f"label_fraction = {config.label_fraction:g} leaves each of {world.world_size} processes a batch "
            f"of {batch_size}, and batch norm needs two samples: use more labels, fewer processes, or "
            f"freeze=True (on the command line --label-fraction, --gpus or --procs, or --freeze)."
        )


def _remedy(config: FinetuneConfig) -> str:
    lr = f"{config.lr / 10:g}"
    return f"try lr = {lr} (on the command line --lr {lr})"


def _start(
    folder: Path, config: FinetuneConfig, run: Path, shard_set: ShardSet, world: World, *, force: bool
) -> None:
    checkpoint.new_folder(folder, force=force, own=checkpoint.OF_CLASSIFIERS)
    values = {**settings.dump(config), "run": str(run), "data": str(shard_set.folder)}
    checkpoint.save_json(folder / checkpoint.CONFIG, {**values, "processes": world.world_size})
