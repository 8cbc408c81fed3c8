"""Pre-training: shards in, an encoder out. `pretrain` is the whole recipe, top to bottom."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siamusic_fast import config as settings
from siamusic_fast.config import PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import checkpoint
from siamusic_fast.training.distributed import Job
from siamusic_fast.training.losses import simsiam_loss
from siamusic_fast.training.metrics import RunLog, Stopwatch, check_finite, collapse_measure
from siamusic_fast.training.models import PROJECTION_DIM, SimSiam, place

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_PARTS = (
    *("config", "normalisation", "encoder", "projector", "predictor", "optimizer"),
    *("epoch", "step", "ranks", "data", "shards"),
)
"""What a checkpoint holds."""
LOG_EVERY = 10
"""Steps in a log line, or fewer at the end of an epoch: only then are values fetched from the device."""
HEALTHY_COLLAPSE = 1 / math.sqrt(PROJECTION_DIM)
"""Collapse measure of outputs that spread over the whole sphere."""


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What a pre-training run came to."""

    run: Path
    epochs: int
    steps: int
    loss: float
    """Mean of the last steps; -1 is the lowest."""
    collapse: float
    """`collapse_measure` of the last batch: healthy near `HEALTHY_COLLAPSE`, collapsed near 0."""
    pairs_per_second: float
    """Over all processes and the whole time since the start or since the resumption."""
    waiting: float
    """Share of that time spent waiting for data, 0 to 1."""
    seconds: float


def pretrain(
    config: PretrainConfig,
    shard_set: ShardSet,
    out: Path,
    *,
    job: Job | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> PretrainResult:
    """Train a SimSiam encoder on `config.splits` of `shard_set`; `out` becomes the run's folder.

    Called in every process of `job`; default: one process on the CPU. With `resume`, goes on after the last
    whole epoch of the run in `out`, whose configuration must be `config`; on a CPU it ends with the very
    weights of a run that was never stopped. With `force`, an earlier run in `out` is replaced. Seeds
    torch's global random generator.

    Raises DataError if `out` is not empty (or, with `resume`, holds no run that can go on), or if the loss
    becomes infinite or NaN; ConfigError if the configuration does not fit the shards.
    """
    job = job or Job()
    saved = _load_resumable(out, config, shard_set, job) if resume else None
    torch.manual_seed(config.seed)

    if saved:
        normalisation = Normalisation(**saved["normalisation"])
    else:
        normalisation = job.once(lambda: estimate(shard_set, config.mel, progress))
    loader = two_view_loader(
        config.backend,
        shard_set,
        recipe=config.recipe,
        splits=config.splits,
        mel=config.mel,
        normalisation=normalisation,
        batch_size=config.batch_size,
        device=job.device,
        seed=config.seed,
        rank=job.rank,
        world_size=job.world_size,
    )
    simsiam = place(SimSiam(config.backbone), job.device)
    optimizer = torch.optim.Adam(
        simsiam.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    first_epoch = step = 0
    if saved:
        first_epoch, step = saved["epoch"], saved["step"]
        simsiam.encoder.load_state_dict(saved["encoder"])
        simsiam.projector.load_state_dict(saved["projector"])
        simsiam.predictor.load_state_dict(saved["predictor"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["ranks"][job.rank]["loader"])
        checkpoint.restore_random_states(saved["ranks"][job.rank]["random"], job.device)
    else:
        out = job.once(lambda: _start_run(out, config, shard_set, job, force=force))
    model = job.wrap(simsiam)

    first_step, last_step = step, config.epochs * len(loader)
    losses: list[torch.Tensor] = []
    note = ""
    stopwatch, started, waited = Stopwatch(job.device), time.perf_counter(), 0.0
    with (
        loader,
        RunLog(out, active=job.leads, resume_at=step if saved else None) as log,
        (progress if job.leads else SILENT).task("Pre-training", last_step - step, "steps") as task,
    ):
        for epoch in range(first_epoch + 1, config.epochs + 1):
            for view1, view2 in stopwatch.timed(loader):
                with torch.autocast(job.device.type, torch.bfloat16, enabled=job.device.type == "cuda"):
                    p1, p2, z1, z2 = model(view1, view2)
                    loss = simsiam_loss(p1, p2, z1, z2)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

                step += 1
                losses.append(loss.detach())
                if len(losses) == LOG_EVERY or step % len(loader) == 0:
                    means = job.mean(torch.stack([*losses, collapse_measure(z1)]))
                    *step_losses, collapse = means.tolist()  # the one place that waits for the device
                    check_finite(step_losses, step, remedy=f"try --lr {config.lr / 10:g}")
                    seconds, waiting = stopwatch.read()
                    mean_loss = sum(step_losses) / len(step_losses)
                    speed = len(step_losses) * config.batch_size * job.world_size / seconds
                    log.write(
                        step,
                        epoch=epoch,
                        loss=mean_loss,
                        collapse=collapse,
                        lr=config.lr,
                        pairs_per_second=speed,
                        waiting=waiting / seconds,
                    )
                    note = f"loss {mean_loss:.3f}, collapse {collapse:.4f}, {speed:.0f} pairs/s"
                    waited += waiting
                    losses.clear()
                task.advance(note=note)

            ranks = job.gather(
                {"loader": loader.state_dict(), "random": checkpoint.random_states(job.device)}
            )
            if job.leads:
                checkpoint.save(
                    out / CHECKPOINT,
                    "pretraining",
                    {
                        "config": settings.dump(config),
                        "normalisation": {
                            "mean": normalisation.mean,
                            "deviation": normalisation.deviation,
                        },
                        "encoder": simsiam.encoder.state_dict(),
                        "projector": simsiam.projector.state_dict(),
                        "predictor": simsiam.predictor.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "epoch": epoch,
                        "step": step,
                        "ranks": ranks,
                        "data": str(shard_set.folder),
                        "shards": _checksums(shard_set, config),
                    },
                )

    seconds = time.perf_counter() - started
    return PretrainResult(
        run=out,
        epochs=config.epochs,
        steps=step,
        loss=mean_loss,
        collapse=collapse,
        pairs_per_second=(step - first_step) * config.batch_size * job.world_size / seconds,
        waiting=waited / seconds,
        seconds=seconds,
    )


def load_run(run: Path) -> tuple[PretrainConfig, str]:
    """Return the configuration of a run and its folder of shards. Raises DataError without a checkpoint."""
    saved = checkpoint.load(run / CHECKPOINT, "pretraining", CHECKPOINT_PARTS)
    return settings.load_pretrain(saved["config"]), saved["data"]


def _load_resumable(run: Path, config: PretrainConfig, shard_set: ShardSet, job: Job) -> dict[str, Any]:
    """Return the checkpoint of `run` if this job can continue it exactly."""
    saved = checkpoint.load(run / CHECKPOINT, "pretraining", CHECKPOINT_PARTS)
    wanted = settings.dump(config)
    differing = [name for name, value in saved["config"].items() if value != wanted[name]]
    if differing:
        raise ConfigError(
            f"{run} was started with another {', '.join(differing)}: "
            f"resume it with what its {checkpoint.CONFIG} says."
        )
    if saved["epoch"] >= config.epochs:
        raise DataError(f"{run} has all of its {config.epochs} epochs: there is nothing to resume.")
    if len(saved["ranks"]) != job.world_size:
        raise ConfigError(
            f"{run} was started with {len(saved['ranks'])} processes, not {job.world_size}: give as many "
            f"with --gpus, or with --workers on the CPU."
        )
    if saved["shards"] != _checksums(shard_set, config):
        raise DataError(f"{run} was started with other shards than those in {shard_set.folder}: use --data.")
    return saved


def _checksums(shard_set: ShardSet, config: PretrainConfig) -> list[str]:
    return [shard.sha256 for shard in shard_set.shards(config.splits)]


def _start_run(out: Path, config: PretrainConfig, shard_set: ShardSet, job: Job, *, force: bool) -> Path:
    checkpoint.new_folder(out, force=force)
    values = {**settings.dump(config), "data": str(shard_set.folder), "processes": job.world_size}
    checkpoint.save_json(out / checkpoint.CONFIG, values)
    return out
