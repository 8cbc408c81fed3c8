"""Fine-tuning: a pre-trained encoder and labelled shards in, a classifier out, top to bottom."""

import itertools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig, MelConfig
from siamusic_fast.evaluation.features import FeatureExtractor, TrackFeatures
from siamusic_fast.evaluation.tag_scores import macro_aucs
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.models import checkpoint
from siamusic_fast.models.networks import STAGES, Classifier, place, stage
from siamusic_fast.models.precision import autocast
from siamusic_fast.models.pretrained import Pretrained, load_pretrained
from siamusic_fast.models.run_files import CLASSIFIER, OF_CLASSIFIERS, check_free
from siamusic_fast.pipelines.loaders import LabelledLoader
from siamusic_fast.processes.signals import Stopped, StopSignals
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.batch_size import fit_batch_size
from siamusic_fast.training.checks import check_finetuning
from siamusic_fast.training.compiling import rehearse
from siamusic_fast.training.run_folder import RunFolder
from siamusic_fast.training.run_log import RunLog
from siamusic_fast.training.schedules import rate_factor
from siamusic_fast.training.trackers import check_loggers
from siamusic_fast.training.train_state import FinetuneFigures, TrainState


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(FinetuneFigures):
    """Scores on the validation split of the classifier that the protocol keeps."""

    folder: Path
    """Folder of the classifier."""
    data: str
    """Folder of the shards."""
    protocol: str
    epochs: int
    tracks: int
    """Number of validation tracks; segments of a track count as one."""
    seconds: float


def finetune(
    config: FinetuneConfig,
    run: Path,
    data: ShardSet | Path | str | None = None,
    out: Path | None = None,
    *,
    world: World | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Train a classifier on the encoder of the pre-training run `run`.

    Called in every process of `world`; default: one process on the CPU. The classifier learns from random
    crops of the labelled training tracks of `data`, by default the shards that the run was made from, and is
    scored on whole validation tracks after each epoch. If the batch size is larger than the number of crops
    of an epoch, it shrinks with a warning. Shards without classes have tags instead, of which a track has any
    number: their loss is binary cross-entropy, and the best epoch has the highest macro ROC-AUC.
    `config.protocol` says which classifier is kept:

    - `clean`: that of the epoch that is best on validation. The test split is left for `evaluate`.
    - `paper`: that of the last epoch, 50 unless told otherwise. The paper's text names no way to choose one.
      Nor does it name a schedule: the rate is constant and the encoder's too, and each track has one crop.
      Its public code trains on the validation split, chooses by the loss on the test split, and leaves out
      tracks when it scores; neither this nor `evaluate` does that.

    Results go to `out`, by default the folder finetune in `run`. With `resume`, the fine-tuning in there goes
    on from its last checkpoint, as in `pretrain`, with the same settings or with more epochs; with `force`,
    earlier results are replaced. Seeds torch's global random generator.

    Raises DataError if `run` holds no pre-training checkpoint, `out` is not empty (or, with `resume`, holds
    no fine-tuning that can go on), the shards have fewer than two classes and no tags, or a split without
    labelled tracks, or the loss becomes infinite or NaN; ConfigError if the configuration does not fit the
    shards; Stopped after Ctrl-C, SIGTERM or SIGHUP, when a checkpoint has been written.
    """
    check_loggers(config.logger)
    world = world or World()
    shard_set = check_finetuning(config, run, data, world.world_size)
    config = config.resolved(shard_set.target)
    pretrained = load_pretrained(run, config.checkpoint)

    # ---- Data
    training, validation = _loaders(config, shard_set, pretrained, world)
    config = fit_batch_size(config, training.batch_size, world)
    with FolderLock() as lock, training, validation:
        # ---- Where to go on from
        folder = RunFolder(out or run / "finetune", config, shard_set, world, pretrained)
        if not resume:
            world.once(lambda: check_free(folder.path, OF_CLASSIFIERS, force))
        saved = folder.reopen(lock) if resume else None

        # ---- Network and optimizer
        torch.manual_seed(config.seed)
        classifier = place(_classifier(config, pretrained, shard_set), world.device)
        optimizer = torch.optim.Adam(
            learning_rates(classifier, config), weight_decay=config.weight_decay, fused=True
        )
        model = _wrapped(classifier, config, pretrained.frontend.mel, world)

        # ---- State
        state = TrainState(
            folder=folder, model=classifier, optimizer=optimizer, loader=training, figures=FinetuneFigures()
        )
        state.begin(saved, lock, force=force)
        started, note = time.perf_counter(), ""
        per_step = training.batch_size * world.world_size
        per_epoch = len(training) * per_step + validation.samples
        left = config.epochs * per_epoch - state.step * per_step - state.epoch * validation.samples
        with (
            StopSignals() as signals,
            RunLog(
                folder.path,
                config.logger,
                active=world.leads,
                resume_at=state.step if saved else None,
                keep_going=config.keep_going,
            ) as log,
            (progress if world.leads else SILENT).task("Fine-tuning", left, "crops") as task,
        ):
            for epoch in range(state.epoch + 1, config.epochs + 1):
                model.train()
                for part in classifier.body if config.freeze else ():
                    part.eval()
                done = state.step - state.epoch * len(training)
                for mels, labels in itertools.islice(training, len(training) - done):
                    # ---- Forward and loss
                    with autocast(world.device):
                        loss = loss_of(model(mels), labels)

                    # ---- Backward
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]

                    # ---- Step
                    factor = rate_factor(config, len(training), state.step, state.extended_at)
                    for group in optimizer.param_groups:
                        group["lr"] = factor * group["highest_lr"]
                    optimizer.step()
                    state.step += 1
                    state.losses.append(loss.detach())
                    task.advance(per_step, note=note)

                    # ---- Save
                    stop, due = world.max(signals.received, state.checkpoint_due)
                    if stop or due:
                        state.save(last=bool(stop))
                    if stop:
                        raise Stopped(stop)

                # ---- Score
                losses = state.mean_losses()
                classifier.eval()
                world.share_buffers(classifier)
                found = _figures(epoch, validation.extract(classifier.probabilities, task), config)

                # ---- Log
                factor = rate_factor(config, len(training), state.step - 1, state.extended_at)
                log.write(
                    state.step,
                    epoch=epoch,
                    loss=sum(losses) / len(losses),
                    **_validation_values(found),
                    lr=factor * config.lr,
                )
                score = (
                    f"accuracy {found.accuracy:.1%}"
                    if found.roc_auc is None
                    else f"ROC-AUC {found.roc_auc:.3f}"
                )
                note = f"epoch {epoch}: loss {found.loss:.3f}, {score} on validation"

                # ---- Save what is best or last
                kept, last = state.figures, epoch == config.epochs
                keeps = last if config.protocol == "paper" else found.rank > kept.rank
                if keeps:
                    state.figures = found
                    # The classifier comes first: what a checkpoint says about it is then always true.
                    if not state.written(lambda: _save_classifier(state, config, pretrained), last=last):
                        state.figures = kept
                state.epoch = epoch
                state.losses.clear()
                if keeps or last:
                    state.save(last=last)

    return FinetuneResult(
        folder=folder.path,
        data=shard_set.place,
        protocol=config.protocol,
        epochs=config.epochs,
        **asdict(state.figures),
        tracks=len(validation.names),
        seconds=time.perf_counter() - started,
    )


def _loaders(
    config: FinetuneConfig, shard_set: ShardSet, pretrained: Pretrained, world: World
) -> tuple[LabelledLoader, FeatureExtractor]:
    training = LabelledLoader(
        shard_set,
        aug=config.aug,
        target=config.target,
        label_fraction=config.label_fraction,
        crops_per_track=config.crops_per_track or 1,
        frontend=pretrained.frontend,
        batch_size=config.batch_size,
        backend=config.backend,
        device=world.device,
        seed=config.seed,
        rank=world.rank,
        world_size=world.world_size,
    )
    validation = FeatureExtractor(
        shard_set,
        "validation",
        pretrained.frontend,
        target=config.target,
        backend=config.backend,
        batch_size=config.batch_size,
        world=world,
    )
    return training, validation


def _classifier(config: FinetuneConfig, pretrained: Pretrained, shard_set: ShardSet) -> Classifier:
    """Return a classifier whose encoder, and projector if it has one, are pre-trained as `config` says."""
    assert config.target is not None
    classifier = Classifier(
        pretrained.architecture,
        len(shard_set.names(config.target)),
        head=config.head,
        features=config.features,
        target=config.target,
        **pretrained.projection,
    )
    if not config.from_scratch:
        classifier.encoder.load_state_dict(pretrained.encoder)
        if config.features == "projector":
            classifier.projector.load_state_dict(pretrained.projector)
    for part in classifier.body:
        part.requires_grad_(not config.freeze)
    return classifier


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of classes, int64 [B], or the binary one of tags, float32 [B, tags]."""
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


def _figures(epoch: int, found: TrackFeatures, config: FinetuneConfig) -> FinetuneFigures:
    """Return how good the probabilities that were `found` of the validation tracks are."""
    if config.target == "tags":
        roc_auc, pr_auc = macro_aucs(found.features, found.tags)
        loss = F.binary_cross_entropy(found.features, found.tags.float())
        return FinetuneFigures(kept_epoch=epoch, roc_auc=roc_auc, pr_auc=pr_auc, loss=float(loss))
    accuracy = (found.features.argmax(dim=1) == found.labels).float().mean()
    loss = F.nll_loss(found.features.clamp_min(1e-12).log(), found.labels)
    return FinetuneFigures(kept_epoch=epoch, accuracy=float(accuracy), loss=float(loss))


def _validation_values(found: FinetuneFigures) -> dict[str, float]:
    """Return the figures as the log has them."""
    values = {name: getattr(found, name) for name in ("loss", "accuracy", "roc_auc", "pr_auc")}
    return {f"validation_{name}": value for name, value in values.items() if value is not None}


def _save_classifier(
    state: TrainState[FinetuneFigures], config: FinetuneConfig, pretrained: Pretrained
) -> None:
    """Write the classifier, and what `evaluate` needs to know of it."""
    values = {
        "architecture": asdict(pretrained.architecture),
        "head": config.head,
        "features": config.features,
        "projection": pretrained.projection,
        "target": config.target,
        "classes": list(state.folder.shard_set.names(config.target or "class")),
        "frontend": pretrained.frontend.dump(),
        "pretrained_on": [] if config.from_scratch else list(pretrained.splits),
        "config": settings.dump(config),
        "model": state.model.state_dict(),
        "epoch": state.figures.kept_epoch,
        **_validation_values(state.figures),
    }
    checkpoint.save(state.folder.path / CLASSIFIER, "classifier", values)


def learning_rates(classifier: Classifier, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the parameters that learn and their highest learning rates, one group per rate.

    The head has `lr`. The projector, if there is one, and the last stage of the encoder have `encoder_lr`.
    Each earlier stage has `layer_decay` of the rate of the stage after it (Clark et al. 2020 do so by layer).
    """
    encoder_lr = config.encoder_lr or config.lr
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, rest = name.partition(".")
        rate = config.lr if part == "head" else encoder_lr
        if part == "encoder":
            rate *= config.layer_decay ** (STAGES - 1 - stage(rest))
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate, "highest_lr": rate} for rate, parameters in groups.items()]


def _wrapped(classifier: Classifier, config: FinetuneConfig, mel: MelConfig, world: World) -> nn.Module:
    """Return `classifier` with gradients averaged over the processes, after its first pass."""
    model = world.wrap(classifier)
    if world.world_size > 1:
        mels = torch.zeros((config.batch_size, 1, mel.n_mels, mel.frames), device=world.device)
        rehearse(model, lambda: model(mels).sum(), world.device)
    return model
