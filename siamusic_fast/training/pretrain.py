"""Pre-training: shards in, an encoder out. `pretrain` is the whole recipe, top to bottom."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamusic_fast.config import PretrainConfig
from siamusic_fast.evaluation.knn import knn_accuracy, knn_possible
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.losses import simsiam_loss
from siamusic_fast.models.networks import PROJECTION_DIM, SimSiam, place
from siamusic_fast.models.precision import autocast
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import LoaderConfig, TwoViewLoader
from siamusic_fast.processes.signals import Stopped, StopSignals
from siamusic_fast.processes.world import World, gradients_kept_apart
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import run_folder as runs
from siamusic_fast.training.compiling import compiled, rehearse
from siamusic_fast.training.run_folder import Training
from siamusic_fast.training.run_log import RunLog, Stopwatch, collapse_measure, peak_memory
from siamusic_fast.training.schedules import SCHEDULES

LOG_EVERY = 10
"""Steps in a log line, or fewer at the end of an epoch: only then are values fetched from the device."""
HEALTHY_COLLAPSE = 1 / math.sqrt(PROJECTION_DIM)
"""Collapse measure of outputs that spread over the whole sphere."""
NEAR_COLLAPSE = HEALTHY_COLLAPSE / 2
"""Below this, a person should be warned. A total collapse does not come near 0: the batch norm at the end of
the projector blows up what little is left, and a batch of B with one odd sample still measures 2 / sqrt(B) of
what is healthy: a quarter at 64."""
TASK = "Pre-training"
"""What `pretrain` calls its work before a `Progress`, which gets the figures of the log as `values`."""


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
    """Bytes: torch's share of the first GPU's, without DALI's, or on the CPU of the first process."""


def pretrain(
    config: PretrainConfig,
    shard_set: ShardSet,
    out: Path,
    *,
    world: World | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> PretrainResult:
    """Train a SimSiam encoder on `config.splits` of `shard_set`; `out` becomes the run's folder.

    Called in every process of `world`; default: one process on the CPU. With `resume`, goes on where the last
    checkpoint of the run in `out` was written, whose configuration must be `config`; on a CPU it ends with
    the very weights of a run that was never stopped. If that checkpoint is damaged, warns, and goes on from
    the one before. With `force`, an earlier run in `out` is replaced. Seeds
    torch's global random generator.

    Raises DataError if `out` is not empty (or, with `resume`, holds no run that can go on), if another job is
    training in it, if the loss becomes infinite or NaN, or if the disk is full; ConfigError if the
    configuration does not fit the shards; Stopped after Ctrl-C, SIGTERM or SIGHUP, when a checkpoint has been
    written.
    """
    world = world or World()
    with FolderLock() as lock:
        if world.restarts and world.once(lambda: runs.is_of(world, out)):
            resume, force = world.once(lambda: runs.has_checkpoint(out)), True
        saved = runs.reopen(out, config, shard_set, world, lock) if resume else None
        torch.manual_seed(config.seed)
        training = _training(config, shard_set, out, world, saved, progress)
        ddp = world.wrap(training.simsiam, sync_batchnorm=config.synchronizes_batchnorm)
        model = _made_ready(ddp, config, world)
        if saved:
            training.restore(saved)
            world.once(lambda: runs.claim(out, world))
        else:
            world.once(lambda: runs.start(out, config, shard_set, world, lock, force=force))
        return _train(config, shard_set, training, ddp, model, progress)


def _train(
    config: PretrainConfig,
    shard_set: ShardSet,
    training: Training,
    ddp: nn.Module,
    model: nn.Module,
    progress: Progress,
) -> PretrainResult:
    """Train `model`, which is `ddp` or that compiled, from where `training` stands to the end."""
    world, loader, optimizer = training.world, training.loader, training.optimizer
    plan = Plan(config, batches=len(loader))
    evaluates = config.knn_every > 0 and knn_possible(shard_set)
    first_step, note, pairs = training.step, "", 0
    started = saved_at = time.perf_counter()
    with (
        loader,
        StopSignals() as signals,
        RunLog(training.run, active=world.leads, resume_at=first_step if training.resumed else None) as log,
        (progress if world.leads else SILENT).task(TASK, plan.last_step - first_step, "steps") as task,
    ):
        for epoch in range(training.epoch + 1, config.epochs + 1):
            knn_due = evaluates and (epoch % config.knn_every == 0 or epoch == config.epochs)
            done = plan.batches_done(training.step, epoch)
            for batch, views in enumerate(training.batches(len(loader) - done), start=done + 1):
                step_ends = plan.ends_step(batch)
                with gradients_kept_apart(ddp, not step_ends):
                    with autocast(world.device):
                        p1, p2, z1, z2 = model(*views)
                        loss = simsiam_loss(p1, p2, z1, z2)
                    (loss / plan.batches_in_step(batch)).backward()  # type: ignore[no-untyped-call]
                training.losses.append(loss.detach())
                pairs += config.batch_size * world.world_size
                if not step_ends:
                    continue
                lr = plan.lr(training.step)
                for group in optimizer.param_groups:
                    group["lr"] = lr if group["scheduled"] else config.lr
                optimizer.step()
                optimizer.zero_grad()
                training.step += 1

                values = None
                if plan.is_logged(training.step):
                    values = {"epoch": epoch, "lr": lr, **_figures(training, z1)}
                    log.write(training.step, **values)
                    note = _note(values)
                    values |= {"step": training.step, "steps": plan.last_step}
                task.advance(note=note, values=values)

                minutes = (time.perf_counter() - saved_at) / 60
                late = minutes >= config.checkpoint_minutes or (knn_due and batch == len(loader))
                stop, save = world.max(signals.received, late)
                if stop or save:
                    training.save()
                    saved_at = time.perf_counter()
                if stop:
                    raise Stopped(stop)

            best = False
            if knn_due:
                with signals.at_once():
                    knn, best = _look_at_knn(training, shard_set, config)
                log.write(training.step, epoch=epoch, knn=knn)
                task.advance(
                    0, values={"epoch": epoch, "knn": knn, "step": training.step, "steps": plan.last_step}
                )
            training.epoch = epoch
            training.save(best=best)
            saved_at = time.perf_counter()

    seconds = time.perf_counter() - started
    return PretrainResult(
        run=training.run,
        epochs=config.epochs,
        steps=training.step,
        loss=training.figures["loss"],
        collapse=training.figures["collapse"],
        knn=training.figures.get("knn"),
        best_knn=training.figures.get("best_knn"),
        pairs_per_second=pairs / seconds,
        waiting=min(training.waited / seconds, 1.0),
        seconds=seconds,
        peak_memory=peak_memory(world.device),
    )


@dataclass(frozen=True)
class Plan:
    """What each step and each batch of a run is: numbers that follow from the settings alone."""

    config: PretrainConfig
    batches: int
    """Per epoch and process."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps; at the end of an epoch, the batches that are left make one too."""
        return math.ceil(self.batches / self.config.grad_accum_steps)

    @property
    def last_step(self) -> int:
        """Of the run, counted from 1."""
        return self.config.epochs * self.steps_per_epoch

    def batches_done(self, steps: int, epoch: int) -> int:
        """Return how many batches of `epoch` there are behind the first `steps` of the run."""
        return min((steps - (epoch - 1) * self.steps_per_epoch) * self.config.grad_accum_steps, self.batches)

    def ends_step(self, batch: int) -> bool:
        """Whether a step follows upon this batch of an epoch, counted from 1."""
        return batch % self.config.grad_accum_steps == 0 or batch == self.batches

    def batches_in_step(self, batch: int) -> int:
        """Return how many batches there are whose gradients are averaged with that of this one."""
        whole = self.batches // self.config.grad_accum_steps * self.config.grad_accum_steps
        return self.config.grad_accum_steps if batch <= whole else self.batches - whole

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup_steps = round(self.config.warmup_epochs * self.steps_per_epoch)
        return self.config.lr * SCHEDULES[self.config.schedule](step, self.last_step, warmup_steps)

    def is_logged(self, steps: int) -> bool:
        """Whether there is a line of figures after the first `steps` of the run."""
        return steps % self.steps_per_epoch % LOG_EVERY == 0


def _training(
    config: PretrainConfig,
    shard_set: ShardSet,
    out: Path,
    world: World,
    saved: dict[str, Any] | None,
    progress: Progress,
) -> Training:
    """Return a network that has learnt nothing yet, and what it learns with."""
    if saved:
        frontend = Frontend.load(saved["frontend"])
    else:
        estimated = world.once(
            lambda: estimate_frontend(
                shard_set, config.mel, progress, short_tracks=config.short_tracks
            ).dump()
        )
        frontend = Frontend.load(estimated)
    loader = TwoViewLoader(
        shard_set,
        LoaderConfig(
            splits=config.splits,
            frontend=frontend,
            batch_size=config.batch_size,
            backend=config.backend,
            device=world.device,
            window=config.window,
            seed=config.seed,
            rank=world.rank,
            world_size=world.world_size,
        ),
        recipe=config.aug,
        crops=config.crops,
        max_distance=config.max_distance,
    )
    simsiam = place(SimSiam(config.backbone), world.device)
    return Training(
        run=out,
        about=runs.about(config, shard_set, frontend),
        world=world,
        simsiam=simsiam,
        optimizer=optimizer_of(config, simsiam),
        loader=loader,
        stopwatch=Stopwatch(world.device),
    )


def optimizer_of(config: PretrainConfig, simsiam: SimSiam) -> torch.optim.Optimizer:
    """Return the optimizer of `config`; its groups say whether the schedule is for them."""
    body = [*simsiam.encoder.parameters(), *simsiam.projector.parameters()]
    groups = [
        {"params": body, "scheduled": True},
        {"params": simsiam.predictor.parameters(), "scheduled": not config.fixed_predictor_lr},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.Adam(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def _made_ready(ddp: nn.Module, config: PretrainConfig, world: World) -> nn.Module:
    """Return `ddp`, compiled if that is wanted and can be, and in the state that it keeps while it trains."""
    example = torch.zeros((config.batch_size, 1, config.mel.n_mels, config.mel.frames), device=world.device)
    model = compiled(ddp, example, world) if config.compiles_on(world.device.type) else ddp
    if world.world_size > 1:
        rehearse(ddp, example, through=model)
    return model


def _figures(training: Training, z: Tensor) -> dict[str, float]:
    """Return what is known of the steps since the last time, and begin anew. Waits for the device."""
    world, pairs = training.world, training.about["config"]["batch_size"] * training.world.world_size
    *losses, collapse = training.losses_over_processes(collapse_measure(z))
    seconds, waiting = training.stopwatch.read()
    training.losses.clear()
    training.waited += waiting
    training.figures |= {"loss": sum(losses) / len(losses), "collapse": collapse}
    return {
        "loss": training.figures["loss"],
        "collapse": collapse,
        "pairs_per_second": len(losses) * pairs / seconds,
        "waiting": waiting / seconds,
        "peak_memory": peak_memory(world.device),
    }


def _note(values: Mapping[str, float]) -> str:
    speed = values["pairs_per_second"]
    return f"loss {values['loss']:.3f}, collapse {values['collapse']:.4f}, {speed:.0f} pairs/s"


def _look_at_knn(training: Training, shard_set: ShardSet, config: PretrainConfig) -> tuple[float, bool]:
    """Return the kNN accuracy and whether it is the best so far; `figures` then has it."""
    training.world.share_buffers(training.simsiam)
    with training.stopwatch.paused():
        knn = knn_accuracy(
            training.simsiam.encoder,
            shard_set,
            training.loader.frontend,
            backend=config.backend,
            batch_size=config.batch_size,
            world=training.world,
        )
    best = knn > training.figures.get("best_knn", -1.0)
    training.figures |= {"knn": knn, **({"best_knn": knn} if best else {})}
    return knn, best
