"""Pre-training: shards in, an encoder out. `pretrain` is the whole recipe, top to bottom."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from siamusic_fast.config import PretrainConfig
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import run as runs
from siamusic_fast.training.compiling import compiled
from siamusic_fast.training.distributed import Job, gradients_kept_apart
from siamusic_fast.training.knn import knn_accuracy, knn_possible
from siamusic_fast.training.losses import simsiam_loss
from siamusic_fast.training.metrics import RunLog, Stopwatch, collapse_measure, peak_memory
from siamusic_fast.training.models import PROJECTION_DIM, SimSiam, place
from siamusic_fast.training.run import CHECKPOINT, Training
from siamusic_fast.training.schedules import SCHEDULES
from siamusic_fast.training.signals import Stopped, StopSignals

LOG_EVERY = 10
"""Steps in a log line, or fewer at the end of an epoch: only then are values fetched from the device."""
HEALTHY_COLLAPSE = 1 / math.sqrt(PROJECTION_DIM)
"""Collapse measure of outputs that spread over the whole sphere."""
NEAR_COLLAPSE = HEALTHY_COLLAPSE / 5
"""Below this, a person should be warned."""
TASK = "Pre-training"
"""What `pretrain` calls its work before a `Progress`, which gets the figures of the log as `values`."""
SYNC_BATCHNORM_BELOW = 64
"""Pairs per process that are too few for batch norm to see its own process's alone."""


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
    knn: float | None
    """kNN accuracy on the validation tracks when it was last looked at, 0 to 1; None without labels."""
    best_knn: float | None
    """The highest, that of the checkpoint best.pt."""
    pairs_per_second: float
    """Over all processes and the whole time since the start or since the resumption."""
    waiting: float
    """Share of that time spent waiting for data, 0 to 1."""
    seconds: float
    peak_memory: int
    """Bytes: of the first GPU, or on the CPU of the first process."""


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

    Called in every process of `job`; default: one process on the CPU. With `resume`, goes on where the last
    checkpoint of the run in `out` was written, whose configuration must be `config`; on a CPU it ends with
    the very weights of a run that was never stopped. With `force`, an earlier run in `out` is replaced. Seeds
    torch's global random generator.

    Raises DataError if `out` is not empty (or, with `resume`, holds no run that can go on), or if the loss
    becomes infinite or NaN; ConfigError if the configuration does not fit the shards; Stopped after Ctrl-C
    or SIGTERM, when a checkpoint has been written.
    """
    job = job or Job()
    if job.restarts and job.once(lambda: runs.is_of(job, out)):
        resume, force = job.once(lambda: (out / CHECKPOINT).is_file()), True
    saved = runs.load_resumable(out, config, shard_set, job) if resume else None
    torch.manual_seed(config.seed)

    if saved:
        normalisation = Normalisation(**saved["normalisation"])
    else:
        normalisation = job.once(lambda: estimate(shard_set, config.mel, progress))
    loader = two_view_loader(
        config.backend,
        shard_set,
        recipe=config.aug,
        crops=config.crops,
        max_distance=config.max_distance,
        short_tracks=config.short_tracks,
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
    body = [*simsiam.encoder.parameters(), *simsiam.projector.parameters()]
    groups = [
        {"params": body, "scheduled": True},
        {"params": simsiam.predictor.parameters(), "scheduled": not config.fixed_predictor_lr},
    ]
    optimizer = (
        torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        if config.optimizer == "sgd"
        else torch.optim.Adam(groups, config.lr, weight_decay=config.weight_decay, fused=True)
    )
    training = Training(
        run=out,
        about=runs.about(config, shard_set, normalisation),
        job=job,
        simsiam=simsiam,
        optimizer=optimizer,
        loader=loader,
        stopwatch=Stopwatch(job.device),
    )
    few = config.batch_size < SYNC_BATCHNORM_BELOW
    ddp = job.wrap(simsiam, sync_batchnorm=few if config.sync_batchnorm is None else config.sync_batchnorm)
    on_gpu = job.device.type == "cuda"
    model = ddp
    if on_gpu if config.compile is None else config.compile:
        shape = (config.batch_size, 1, config.mel.n_mels, config.mel.frames)
        model = compiled(ddp, torch.zeros(shape, device=job.device))
    if saved:
        training.restore(saved)
        job.once(lambda: runs.claim(out, job))
    else:
        training.run = out = job.once(lambda: runs.start(out, config, shard_set, job, force=force))

    steps_per_epoch = math.ceil(len(loader) / config.accumulate)
    whole_steps = len(loader) // config.accumulate * config.accumulate
    last_step = config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    pairs_per_batch = config.batch_size * job.world_size
    evaluates = config.knn_every > 0 and knn_possible(shard_set)
    first_step, note, pairs, waited = training.step, "", 0, 0.0
    started = saved_at = time.perf_counter()
    with (
        loader,
        StopSignals() as signals,
        RunLog(out, active=job.leads, resume_at=first_step if saved else None) as log,
        (progress if job.leads else SILENT).task(TASK, last_step - first_step, "steps") as task,
    ):
        for epoch in range(training.epoch + 1, config.epochs + 1):
            knn_due = evaluates and (epoch % config.knn_every == 0 or epoch == config.epochs)
            done = min((training.step - (epoch - 1) * steps_per_epoch) * config.accumulate, len(loader))
            for batch, (view1, view2) in enumerate(training.batches(), start=done + 1):
                # Gradients of `accumulate` batches are averaged; at the end of an epoch, of those left.
                step_ends = batch % config.accumulate == 0 or batch == len(loader)
                in_step = config.accumulate if batch <= whole_steps else len(loader) - whole_steps
                with gradients_kept_apart(ddp, not step_ends):
                    with torch.autocast(job.device.type, torch.bfloat16, enabled=on_gpu):
                        p1, p2, z1, z2 = model(view1, view2)
                        loss = simsiam_loss(p1, p2, z1, z2)
                    (loss / in_step).backward()  # type: ignore[no-untyped-call]
                training.losses.append(loss.detach())
                pairs += pairs_per_batch
                if not step_ends:
                    continue
                lr = config.lr * SCHEDULES[config.schedule](training.step, last_step, warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr if group["scheduled"] else config.lr
                optimizer.step()
                optimizer.zero_grad()
                training.step += 1

                values = None
                if training.step % steps_per_epoch % LOG_EVERY == 0:
                    # The one place that waits for the device.
                    *losses, collapse = training.losses_over_processes(collapse_measure(z1))
                    seconds, waiting = training.stopwatch.read()
                    values = {
                        "epoch": epoch,
                        "loss": sum(losses) / len(losses),
                        "collapse": collapse,
                        "lr": lr,
                        "pairs_per_second": len(losses) * pairs_per_batch / seconds,
                        "waiting": waiting / seconds,
                        "peak_memory": peak_memory(job.device),
                    }
                    log.write(training.step, **values)
                    training.figures |= {name: values[name] for name in ("loss", "collapse")}
                    speed = values["pairs_per_second"]
                    note = f"loss {values['loss']:.3f}, collapse {collapse:.4f}, {speed:.0f} pairs/s"
                    waited += waiting
                    training.losses.clear()
                    values |= {"step": training.step, "steps": last_step}
                task.advance(note=note, values=values)

                minutes = (time.perf_counter() - saved_at) / 60
                late = minutes >= config.checkpoint_minutes or (knn_due and batch == len(loader))
                stop, save = job.highest(signals.received, late)
                if stop or save:
                    with training.stopwatch.paused():
                        training.save()
                    saved_at = time.perf_counter()
                if stop:
                    raise Stopped(stop)

            best = False
            if knn_due:
                with signals.at_once(), training.stopwatch.paused():
                    knn = knn_accuracy(simsiam.encoder, shard_set, config.mel, normalisation, job=job)
                best = knn > training.figures.get("best_knn", -1.0)
                training.figures |= {"knn": knn, **({"best_knn": knn} if best else {})}
                log.write(training.step, epoch=epoch, knn=knn)
                task.advance(
                    0, values={"epoch": epoch, "knn": knn, "step": training.step, "steps": last_step}
                )
            training.epoch = epoch
            with training.stopwatch.paused():
                training.save(best=best)
            saved_at = time.perf_counter()

    seconds = time.perf_counter() - started
    return PretrainResult(
        run=out,
        epochs=config.epochs,
        steps=training.step,
        loss=training.figures["loss"],
        collapse=training.figures["collapse"],
        knn=training.figures.get("knn"),
        best_knn=training.figures.get("best_knn"),
        pairs_per_second=pairs / seconds,
        waiting=min(waited / seconds, 1.0),
        seconds=seconds,
        peak_memory=peak_memory(job.device),
    )
