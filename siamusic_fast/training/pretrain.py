"""Pre-training: shards in, an encoder out. `pretrain` is the whole recipe, top to bottom."""

import itertools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from siamusic_fast.config import PretrainConfig
from siamusic_fast.evaluation.effective_rank import effective_rank
from siamusic_fast.evaluation.knn import knn_name, knn_possible, knn_score
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.init_weights import load_init
from siamusic_fast.models.methods import Method, Output, method_of
from siamusic_fast.models.networks import place
from siamusic_fast.models.precision import autocast
from siamusic_fast.models.run_files import OF_RUNS, check_free
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.processes.signals import Stopped, StopSignals
from siamusic_fast.processes.world import World, gradients_kept_apart
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet, find_shards
from siamusic_fast.training.batch_size import fit_batch_size
from siamusic_fast.training.checks import check_pretraining
from siamusic_fast.training.compiling import compiled, example_loss, rehearse
from siamusic_fast.training.run_folder import RunFolder
from siamusic_fast.training.run_log import (
    RunLog,
    collapse_measure,
    healthy_collapse,
    peak_memory,
)
from siamusic_fast.training.schedules import StepPlan
from siamusic_fast.training.trackers import check_loggers
from siamusic_fast.training.train_state import PretrainFigures, TrainState

TASK = "Pre-training"
"""Name of the task that `pretrain` shows; the figures of its log go to `Progress` as `values`."""
_NOTE = "loss {loss:.3f}, rank {encoder_rank:.1f}, {pairs_per_second:.0f} pairs/s"


@dataclass(frozen=True, kw_only=True)
class PretrainResult(PretrainFigures):
    """Figures of a pre-training run at its end."""

    run: Path
    """Folder of the run."""
    epochs: int
    steps: int
    pairs_per_second: float
    """Pairs of all processes per second since the run was started or resumed."""
    waiting: float
    """Share of that time spent waiting for data, 0 to 1."""
    healthy_collapse: float
    """The collapse measure of outputs that spread over the whole sphere, to compare `collapse` with."""
    seconds: float
    peak_memory: int
    """Bytes that torch used of the first GPU, which DALI's are not part of, or on the CPU of this process."""


def pretrain(
    config: PretrainConfig,
    data: ShardSet | Path | str,
    out: Path,
    *,
    world: World | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> PretrainResult:
    """Train an encoder by `config.method` on `config.splits` of the shards `data`; `out` becomes its folder.

    Called in every process of `world`; default: one process on the CPU. If the batch size is larger than the
    number of tracks, it shrinks with a warning. Seeds torch's global random generator.

    With `resume`, the run in `out` goes on from its last checkpoint, or, with a warning, from the one before
    if the last one is damaged. `config` must be that of the run, but may have more epochs, which extends the
    run: a cosine schedule then starts anew, with a warning, after the epochs that the run had. On a CPU a
    resumed run ends with exactly the weights of a run that was never stopped. With `force`, an earlier run in
    `out` is replaced.

    Raises DataError if `out` is not empty (or, with `resume`, holds no run that can go on), if another job is
    training in it, if the loss becomes infinite or NaN, or, without
    `keep_going`, if the disk is full; ConfigError if the
    configuration does not fit the shards; Stopped after Ctrl-C, SIGTERM or SIGHUP, when a checkpoint has been
    written.
    """
    check_loggers(config.logger)
    world = world or World()
    shard_set = data if isinstance(data, ShardSet) else find_shards(data)
    check_pretraining(config, shard_set, world.world_size)
    config = fit_batch_size(config, shard_set.tracks(config.splits) // world.world_size, world)
    folder = RunFolder(out, config, shard_set, world)
    with FolderLock() as lock:
        # ---- Where to go on from
        if world.once(folder.was_begun_by_this_job):
            resume, force = world.once(folder.checkpoints.exist), True
        if not resume:
            world.once(lambda: check_free(out, OF_RUNS, force))
        saved = folder.reopen(lock) if resume else None

        # ---- Data
        loader = _loader(config, shard_set, saved, world, progress)

        # ---- Network and optimizer
        torch.manual_seed(config.seed)
        network = place(method_of(config), world.device)
        if config.init and not saved:
            load_init(network.encoder, config.init)
        optimizer = optimizer_of(config, network)
        ddp = world.wrap(network, sync_batchnorm=config.synchronizes_batchnorm)
        model = _compiled_and_rehearsed(ddp, config, world)

        # ---- State
        state = TrainState(
            folder=folder, model=network, optimizer=optimizer, loader=loader, figures=PretrainFigures()
        )
        state.begin(saved, lock, force=force)
        plan = StepPlan(config, len(loader), state.extended_at)
        has_knn = config.knn_every > 0 and knn_possible(shard_set)
        first_step, pairs, note = state.step, 0, ""
        pairs_per_batch = config.batch_size * world.world_size
        started = time.perf_counter()
        with (
            loader,
            StopSignals() as signals,
            RunLog(
                out,
                config.logger,
                active=world.leads,
                resume_at=first_step if saved else None,
                keep_going=config.keep_going,
            ) as log,
            (progress if world.leads else SILENT).task(TASK, plan.steps - first_step, "steps") as task,
        ):
            if has_knn and not saved:
                with signals.at_once(), state.stopwatch.paused():
                    knn = _knn(state, network, config)
                state.figures = replace(state.figures, initial_knn=knn)
                log.write(0, epoch=0, **{knn_name(shard_set): knn})
            for epoch in range(state.epoch + 1, config.epochs + 1):
                knn_due = has_knn and (epoch % config.knn_every == 0 or epoch == config.epochs)
                done = plan.batches_done(state.step, epoch)
                batches = itertools.islice(state.stopwatch.timed(loader), len(loader) - done)
                for batch, (view1, view2) in enumerate(batches, start=done + 1):
                    # ---- Forward and loss
                    step_ends = plan.ends_step(batch)
                    with gradients_kept_apart(ddp, not step_ends):
                        with autocast(world.device):
                            output: Output = model(view1, view2)

                        # ---- Backward
                        (output.loss / plan.batches_in_step(batch)).backward()  # type: ignore[no-untyped-call]
                    state.losses.append(output.loss.detach())
                    pairs += pairs_per_batch
                    if not step_ends:
                        continue

                    # ---- Step
                    lr = plan.lr(state.step)
                    for group in optimizer.param_groups:
                        group["lr"] = lr if group["scheduled"] else config.lr
                    optimizer.step()
                    optimizer.zero_grad()
                    state.step += 1
                    network.after_step(state.step / plan.steps)

                    # ---- Log: only here the host waits for the device
                    values: dict[str, float] | None = None
                    if plan.is_logged(state.step):
                        values = {"epoch": epoch, "lr": lr, **_measure(state, output, pairs_per_batch)}
                        log.write(state.step, **values)
                        most = min(len(view1) - 1, *(len(one[0]) for one in output[1:]))
                        values |= {"step": state.step, "steps": plan.steps, "highest_rank": most}
                        note = _NOTE.format(**values)
                    task.advance(note=note, values=values)

                    # ---- Save
                    stop, due = world.max(signals.received, state.checkpoint_due)
                    if stop or due:
                        state.save(last=bool(stop))
                    if stop:
                        raise Stopped(stop)

                # ---- Score
                best, best_before = False, state.figures.best_knn
                if knn_due:
                    with state.saved_if_interrupted(), signals.at_once():
                        knn = _knn(state, network, config)
                    best = best_before is None or knn > best_before
                    state.figures = replace(state.figures, knn=knn, best_knn=knn if best else best_before)
                    log.write(state.step, epoch=epoch, **{knn_name(shard_set): knn})
                    values = {
                        "epoch": epoch,
                        knn_name(shard_set): knn,
                        "step": state.step,
                        "steps": plan.steps,
                    }
                    task.advance(0, values=values)

                # ---- Save what is best or last
                state.epoch, last = epoch, epoch == config.epochs
                if (best or last) and not state.save(best=best, last=last):
                    state.figures = replace(state.figures, best_knn=best_before)

    seconds = time.perf_counter() - started
    return PretrainResult(
        run=out,
        epochs=config.epochs,
        steps=state.step,
        **asdict(state.figures),
        pairs_per_second=pairs / seconds,
        waiting=min(state.stopwatch.total_waited / seconds, 1.0),
        healthy_collapse=healthy_collapse(config.width),
        seconds=seconds,
        peak_memory=peak_memory(world.device),
    )


def _loader(
    config: PretrainConfig,
    shard_set: ShardSet,
    saved: dict[str, Any] | None,
    world: World,
    progress: Progress,
) -> TwoViewLoader:
    """Return the loader of a run, with the frontend of its checkpoint or else one that is estimated."""

    def estimate() -> dict[str, Any]:
        return estimate_frontend(
            shard_set,
            config.mel,
            progress,
            short_tracks=config.short_tracks,
            normalization=config.normalization,
        ).dump()

    values = saved["frontend"] if saved else world.once(estimate)
    return TwoViewLoader(
        shard_set,
        aug=config.aug,
        crops=config.crops,
        max_distance=config.max_distance,
        splits=config.splits,
        frontend=Frontend.load(values),
        batch_size=config.batch_size,
        backend=config.backend,
        device=world.device,
        window=config.window,
        seed=config.seed,
        rank=world.rank,
        world_size=world.world_size,
    )


def optimizer_of(config: PretrainConfig, network: Method) -> torch.optim.Optimizer:
    """Return the optimizer of `config`; each of its groups says whether its learning rate is scheduled."""
    body = [*network.encoder.parameters(), *network.projector.parameters()]
    groups: list[dict[str, Any]] = [{"params": body, "scheduled": True}]
    if network.has_predictor:
        predictor = network.predictor.parameters()
        groups.append({"params": predictor, "scheduled": not config.fixed_predictor_lr})
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def _compiled_and_rehearsed(ddp: nn.Module, config: PretrainConfig, world: World) -> nn.Module:
    """Return `ddp`, compiled if wanted and possible, in the state of a network after its first pass."""
    example = torch.zeros((config.batch_size, 1, config.mel.n_mels, config.mel.frames), device=world.device)
    model = compiled(ddp, example, world) if config.compiles_on(world.device.type) else ddp
    if world.world_size > 1:
        rehearse(ddp, lambda: example_loss(model, example), world.device)
    return model


def _measure(state: TrainState[PretrainFigures], output: Output, pairs_per_batch: int) -> dict[str, float]:
    """Return the figures since the last line of the log, and begin anew. Waits for the device."""
    measures = {
        "collapse": collapse_measure(output.projections),
        "projector_rank": effective_rank(output.projections),
        "encoder_rank": effective_rank(output.features),
    }
    means = state.mean_losses(*measures.values())
    losses, found = means[: -len(measures)], dict(zip(measures, means[-len(measures) :], strict=True))
    state.losses.clear()
    state.figures = replace(state.figures, loss=sum(losses) / len(losses), **found)
    pairs = state.stopwatch.batches * pairs_per_batch
    seconds, waited = state.stopwatch.read()
    return {
        "loss": state.figures.loss,
        **found,
        "pairs_per_second": pairs / seconds,
        "waiting": waited / seconds,
        "peak_memory": peak_memory(state.folder.world.device),
    }


def _knn(state: TrainState[PretrainFigures], network: Method, config: PretrainConfig) -> float:
    """Return the kNN score of the encoder with the buffers of the leading process."""
    state.folder.world.share_buffers(network)
    return knn_score(
        network.encoder,
        state.folder.shard_set,
        state.loader.frontend,
        backend=config.backend,
        batch_size=config.batch_size,
        world=state.folder.world,
    )
