"""Fine-tuning: a pre-trained encoder and labelled shards in, a classifier out, top to bottom."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig
from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.loader import LabelledLoader, TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import checkpoint
from siamusic_fast.training.distributed import Job
from siamusic_fast.training.evaluate import CLASSIFIER, TRACKS_PER_BATCH, classify
from siamusic_fast.training.metrics import RunLog, check_finite
from siamusic_fast.training.models import Classifier, place
from siamusic_fast.training.pretrain import CHECKPOINT, CHECKPOINT_PARTS


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What fine-tuning came to: the classifier of the best epoch, judged on the validation split."""

    folder: Path
    epochs: int
    best_epoch: int
    """Counted from 1."""
    accuracy: float
    """On the validation tracks, 0 to 1, of the best epoch."""
    loss: float
    """Cross-entropy on the validation tracks, of the best epoch."""
    tracks: int
    """Validation tracks."""
    seconds: float


def finetune(
    config: FinetuneConfig,
    run: Path,
    shard_set: ShardSet,
    out: Path | None = None,
    *,
    freeze: bool = False,
    force: bool = False,
    job: Job | None = None,
    progress: Progress = SILENT,
) -> FinetuneResult:
    """Train a classifier on the encoder of the pre-training run `run` and keep the one of the best epoch.

    Learns from random crops of the labelled training tracks and is judged on whole validation tracks. With
    `freeze` only the linear layer learns, and the encoder's batch norms keep their statistics too. Results go
    to `out`, by default the folder finetune in `run`; with `force`, in the place of earlier ones.
    Seeds torch's global random generator.

    Raises DataError if `run` holds no pre-training checkpoint, `out` is not empty, the shards have fewer than
    two classes or a split without labelled tracks, or the loss becomes infinite or NaN.
    """
    job = job or Job()
    if len(shard_set.classes) < 2:
        found = ", ".join(shard_set.classes) or "none"
        raise DataError(f"{shard_set.folder} has too few classes ({found}): a classifier needs at least 2.")
    saved = checkpoint.load(run / CHECKPOINT, "pretraining", CHECKPOINT_PARTS)
    pretrained = settings.load_pretrain(saved["config"])
    torch.manual_seed(config.seed)

    mel, normalisation = pretrained.mel, Normalisation(**saved["normalisation"])
    training = LabelledLoader(
        shard_set,
        splits=["training"],
        mel=mel,
        normalisation=normalisation,
        batch_size=config.batch_size,
        device=job.device,
        seed=config.seed,
    )
    validation = TrackLoader(
        shard_set,
        splits=["validation"],
        mel=mel,
        normalisation=normalisation,
        batch_size=TRACKS_PER_BATCH,
        device=job.device,
    )
    model = Classifier(pretrained.backbone, len(shard_set.classes))
    model.encoder.load_state_dict(saved["encoder"])
    model.encoder.requires_grad_(not freeze)
    place(model, job.device)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    folder = checkpoint.new_folder(out or run / "finetune", force=force)
    checkpoint.save_json(
        folder / checkpoint.CONFIG,
        {**settings.dump(config), "freeze": freeze, "run": str(run), "data": str(shard_set.folder)},
    )

    started = time.perf_counter()
    best_epoch, best_accuracy, best_loss = 0, -1.0, 0.0
    step, note = 0, ""
    n_validation = shard_set.tracks(["validation"], labelled_only=True)
    tracks_per_epoch = len(training) * training.batch_size + n_validation
    with (
        training,
        validation,
        RunLog(folder) as log,
        progress.task("Fine-tuning", config.epochs * tracks_per_epoch, "tracks") as task,
    ):
        for epoch in range(1, config.epochs + 1):
            model.train()
            if freeze:
                model.encoder.eval()
            losses = []
            for mels, labels in training:
                with torch.autocast(job.device.type, torch.bfloat16, enabled=job.device.type == "cuda"):
                    loss = F.cross_entropy(model(mels), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                losses.append(loss.detach())
                task.advance(len(labels), note=note)

            step_losses = torch.stack(losses).tolist()
            check_finite(step_losses, step, remedy=f"try --lr {config.lr / 10:g}")
            probabilities, truths = classify(model, validation, task)
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

            if (accuracy, -validation_loss) > (best_accuracy, -best_loss):
                best_epoch, best_accuracy, best_loss = epoch, accuracy, validation_loss
                checkpoint.save(
                    folder / CLASSIFIER,
                    "classifier",
                    {
                        "backbone": pretrained.backbone,
                        "classes": list(shard_set.classes),
                        "mel": settings.dump(mel),
                        "normalisation": saved["normalisation"],
                        "model": model.state_dict(),
                        "config": settings.dump(config),
                        "epoch": epoch,
                        "validation_accuracy": accuracy,
                        "validation_loss": validation_loss,
                    },
                )

    return FinetuneResult(
        folder=folder,
        epochs=config.epochs,
        best_epoch=best_epoch,
        accuracy=best_accuracy,
        loss=best_loss,
        tracks=n_validation,
        seconds=time.perf_counter() - started,
    )
