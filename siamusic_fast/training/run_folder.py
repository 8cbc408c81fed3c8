"""The folder of a pre-training run: what a checkpoint holds, how it is written, and when one can go on."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from siamusic_fast import config as settings
from siamusic_fast.config import PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.folder_lock import FolderLock, is_locked
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint
from siamusic_fast.models.networks import SimSiam
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.run_log import Stopwatch, check_finite

CHECKPOINT = "checkpoint.pt"
"""The last checkpoint."""
PREVIOUS = "checkpoint-previous.pt"
"""The one before it, from which a run goes on if the last one is damaged."""
DAMAGED = "checkpoint-damaged.pt"
"""A last checkpoint that was found damaged when the run went on from the one before."""
BEST = "best.pt"
"""The checkpoint of the epoch with the best kNN accuracy on the validation tracks."""
_JOB = ".job"
_MAY_CHANGE = ("checkpoint_minutes", "knn_every")
"""Settings that do not touch what is learnt: a run goes on with others."""
CHECKPOINT_PARTS = (
    *("config", "frontend", "encoder", "projector", "predictor", "optimizer"),
    *("epoch", "step", "figures", "ranks", "data", "shards"),
)
"""What a checkpoint holds."""


@dataclass(kw_only=True)
class Training:
    """All that changes while a run trains, and the writing of its checkpoints."""

    run: Path
    about: dict[str, Any]
    """What does not change: `config`, `frontend`, `data` and `shards` of the checkpoint."""
    world: World
    simsiam: SimSiam
    optimizer: Optimizer
    loader: TwoViewLoader
    stopwatch: Stopwatch
    epoch: int = 0
    """Whole epochs that are done."""
    step: int = 0
    """Steps of the optimizer that are done."""
    losses: list[Tensor] = field(default_factory=list)
    """Of the batches since the last line of the log."""
    figures: dict[str, float] = field(default_factory=dict)
    """The last that are known: `loss`, `collapse`, and if there are labels `knn` and `best_knn`."""
    saved_step: int | None = None
    """Step of the last checkpoint."""
    waited: float = 0.0
    """Seconds that this process has waited for data, as far as its figures have been read."""
    resumed: bool = False
    """Whether it goes on from a checkpoint."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        here = saved["ranks"][self.world.rank]
        self.simsiam.encoder.load_state_dict(saved["encoder"])
        self.simsiam.projector.load_state_dict(saved["projector"])
        self.simsiam.predictor.load_state_dict(saved["predictor"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loader.load_state_dict(here["loader"])
        self.losses = list(here["losses"].to(self.world.device))
        self.stopwatch = Stopwatch(self.world.device, *here["stopwatch"])
        self.epoch, self.step, self.figures = saved["epoch"], saved["step"], saved["figures"]
        self.saved_step, self.resumed = self.step, True
        checkpoint.restore_random_states(here["random"], self.world.device)

    def batches(self, left: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the `left` batches of an epoch, timed."""
        return itertools.islice(self.stopwatch.timed(self.loader), left)

    def save(self, *, best: bool = False) -> None:
        """Write the checkpoint, and as the best one too if it is. Called in every process.

        Its time does not count as training. Raises DataError instead, in all processes, if the loss or the
        weights are not finite.
        """
        with self.stopwatch.paused():
            self._save(best)

    def _save(self, best: bool) -> None:
        self.losses_over_processes()
        self.world.share_buffers(self.simsiam)
        if not torch.stack([weight.isfinite().all() for weight in self.simsiam.parameters()]).all():
            raise DataError(
                f"the weights became infinite or NaN at step {self.step}, mostly a sign of too high a "
                f"learning rate: {self._remedy()}."
            )
        here = {
            "loader": self.loader.state_dict(),
            "losses": torch.stack(self.losses).cpu() if self.losses else torch.empty(0),
            "stopwatch": self.stopwatch.look(),
            "random": checkpoint.random_states(self.world.device),
        }
        ranks = self.world.gather(here)
        # The others wait for the leading process: one that is told to stop and ends would end it.
        self.world.once(functools.partial(self._write, ranks, best=best))
        self.saved_step = self.step

    def _write(self, ranks: list[dict[str, Any]], *, best: bool) -> None:
        content = {
            **self.about,
            "encoder": self.simsiam.encoder.state_dict(),
            "projector": self.simsiam.projector.state_dict(),
            "predictor": self.simsiam.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "figures": self.figures,
            "ranks": ranks,
        }
        remedy = self._remedy_without_space()
        if best:
            # First: what a checkpoint says of the best accuracy is true of best.pt, whatever happens.
            checkpoint.save(self.run / BEST, "pretraining", content, remedy=remedy)
            checkpoint.duplicate(self.run / BEST, CHECKPOINT, previous=PREVIOUS, remedy=remedy)
        else:
            path = self.run / CHECKPOINT
            checkpoint.save(path, "pretraining", content, previous=PREVIOUS, remedy=remedy)

    def losses_over_processes(self, *others: Tensor) -> list[float]:
        """Return the losses since the last line of the log and scalars `others`, averaged over processes.

        Waits for the device. Raises DataError, in all processes, if one of the losses is not finite.
        """
        if not self.losses and not others:
            return []
        means: list[float] = self.world.mean(torch.stack([*self.losses, *others])).tolist()
        batches = self.about["config"]["grad_accum_steps"]
        first_step = self.step - -(-len(self.losses) // batches) + 1
        for place, loss in enumerate(means[: len(self.losses)]):
            check_finite([loss], first_step + place // batches, remedy=self._remedy())
        return means

    def _remedy(self) -> str:
        last = (
            f"the last good checkpoint is {self.run / CHECKPOINT}, of step {self.saved_step}"
            if self.saved_step is not None
            else "there is no checkpoint yet"
        )
        lr = f"{self.about['config']['lr'] / 10:g}"
        return (
            f"try lr = {lr} or warmup_epochs (on the command line --lr {lr} or --warmup-epochs); if that "
            f"does not help, see whether the data is whole with "
            f"`siamusic-fast verify {self.about['data']}`; {last}"
        )

    def _remedy_without_space(self) -> str:
        if self.saved_step is None:
            return "There is no earlier checkpoint: then run the same command again with --force."
        processes = self.world.world_size
        on_cpu = f" --gpus 0{f' --procs {processes}' if processes > 1 else ''}"
        where = on_cpu if self.world.device.type == "cpu" else f" --gpus {processes}"
        return (
            f"The checkpoint of step {self.saved_step} is whole: then go on from it with "
            f"`siamusic-fast pretrain --resume {shlex.quote(str(self.run))}{where}`."
        )


def about(config: PretrainConfig, shard_set: ShardSet, frontend: Frontend) -> dict[str, Any]:
    """Return what a run was started with, as its checkpoints hold it."""
    return {
        "config": settings.dump(config),
        "frontend": frontend.dump(),
        "data": str(shard_set.folder),
        "shards": _checksums(shard_set, config),
    }


def start(
    out: Path, config: PretrainConfig, shard_set: ShardSet, world: World, lock: FolderLock, *, force: bool
) -> None:
    """Make the folder of a new run and lock it, with its settings to read and to feed back."""
    checkpoint.new_folder(out, force=force, lock=lock)
    values = {**settings.dump(config), "data": str(shard_set.folder), "processes": world.world_size}
    checkpoint.save_json(out / checkpoint.CONFIG, values)
    claim(out, world)


def claim(run: Path, world: World) -> None:
    """Note that `run` is the one of `world`, if that may be started again."""
    if world.id:
        (run / _JOB).write_text(world.id)


def is_of(world: World, run: Path) -> bool:
    """Whether `world` itself, before it was started again, had begun with `run`: no other is its to touch."""
    return (run / _JOB).is_file() and (run / _JOB).read_text() == world.id


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint in `run`, the last or the one before."""
    return any((run / name).is_file() for name in (CHECKPOINT, PREVIOUS))


def load_run(run: Path) -> tuple[PretrainConfig, str]:
    """Return the configuration of a run and its folder of shards. Raises DataError without a checkpoint."""
    saved = _load(_to_go_on_from(run))
    return settings.load_pretrain(saved["config"]), saved["data"]


def _load(path: Path) -> dict[str, Any]:
    return checkpoint.load(path, "pretraining", CHECKPOINT_PARTS)


def _to_go_on_from(run: Path) -> Path:
    """Return the last checkpoint of `run`, or the one before if that alone is whole."""
    return run / (PREVIOUS if only_previous_is_whole(run) else CHECKPOINT)


def only_previous_is_whole(run: Path) -> bool:
    """Whether the last checkpoint of `run` is damaged or missing and the one before is not."""
    return not checkpoint.is_whole(run / CHECKPOINT) and checkpoint.is_whole(run / PREVIOUS)


def damaged_or_missing(run: Path) -> str:
    """Return which of the two the last checkpoint of `run` is, if it is not whole."""
    return "damaged" if (run / CHECKPOINT).exists() else "missing"


def is_abandoned(run: Path) -> bool:
    """Whether `run` is a pre-training run that was ended before its first checkpoint: nothing is in it."""
    worth_keeping = (CHECKPOINT, PREVIOUS, BEST, "finetune", "evaluate", "probe")
    return (
        _is_of_pretraining(run)
        and not any((run / name).exists() for name in worth_keeping)
        and not is_locked(run)
    )


def _is_of_pretraining(run: Path) -> bool:
    """Whether `run` has the settings of a pre-training run: those of a classifier are others."""
    try:
        values = json.loads((run / checkpoint.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = {field.name for field in dataclasses.fields(PretrainConfig)}
    return isinstance(values, dict) and names <= values.keys()


def is_finished(run: Path, config: PretrainConfig, shard_set: ShardSet) -> bool:
    """Whether `run` has all the epochs of `config` on these very shards behind it."""
    if not has_checkpoint(run):
        return False
    saved = _load(_to_go_on_from(run))
    found = [saved["epoch"], saved["config"], saved["shards"]]
    return found == [config.epochs, settings.dump(config), _checksums(shard_set, config)]


def newest_unfinished(runs: Path) -> Path | None:
    """Return the run in `runs` that was saved last of those that have epochs left and no job, if any."""
    saved_at: dict[Path, float] = {}
    for path in itertools.chain(runs.glob(f"*/{PREVIOUS}"), runs.glob(f"*/{CHECKPOINT}")):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            saved_at[path.parent] = path.stat().st_mtime
    for run in sorted(saved_at, key=saved_at.__getitem__, reverse=True):
        if is_locked(run):
            continue
        with contextlib.suppress(DataError):  # of another version, or damaged
            saved = _load(_to_go_on_from(run))
            if saved["epoch"] < saved["config"]["epochs"]:
                return run
    return None


def reopen(
    run: Path, config: PretrainConfig, shard_set: ShardSet, world: World, lock: FolderLock
) -> dict[str, Any]:
    """Lock `run` and return its last whole checkpoint, if this job can continue it exactly.

    If that is not the newest one, warns, and puts it in the place of the newest. Raises what is in the way.
    """
    world.once(lambda: lock.take(run) if run.is_dir() else None)
    path = run / world.once(lambda: _to_go_on_from(run).name)  # the same in all processes
    saved = _load(path)
    _check_resumable(saved, run, config, shard_set, world)
    if path.name == PREVIOUS:
        if world.leads:
            warnings.warn(
                f"{run / CHECKPOINT} is {damaged_or_missing(run)}: {PREVIOUS}, of step {saved['step']}, "
                f"takes its place and the run goes on from there",
                stacklevel=2,
            )
        world.wait_for_all()  # until each has read it under its old name
        world.once(lambda: _put_in_place(run))
    return saved


def _put_in_place(run: Path) -> None:
    """Give the checkpoint before the last the place of the last, which is kept beside it if it is damaged."""
    with contextlib.suppress(FileNotFoundError):
        (run / CHECKPOINT).replace(run / DAMAGED)
    (run / PREVIOUS).replace(run / CHECKPOINT)


def _check_resumable(
    saved: dict[str, Any], run: Path, config: PretrainConfig, shard_set: ShardSet, world: World
) -> None:
    """Raise what keeps this job from going on exactly from the checkpoint `saved` of `run`."""
    differing = [
        name for name in _differing(saved["config"], settings.dump(config)) if name not in _MAY_CHANGE
    ]
    if differing:
        raise ConfigError(
            f"{run} was started with another {', '.join(differing)}: "
            f"resume it with what its {checkpoint.CONFIG} says."
        )
    if saved["epoch"] >= config.epochs:
        raise DataError(f"{run} has all of its {config.epochs} epochs: there is nothing to resume.")
    if len(saved["ranks"]) != world.world_size:
        raise ConfigError(
            f"{run} was started with {len(saved['ranks'])} processes, not {world.world_size}: start as many "
            f"(on the command line --gpus, or --procs on the CPU)."
        )
    if saved["shards"] != _checksums(shard_set, config):
        raise DataError(
            f"{run} was started with other shards than those in {shard_set.folder}: use {saved['data']} (on "
            f"the command line --data)."
        )


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ, such as lr or mel.seconds."""
    differing = []
    for name in sorted({**one, **other}, key=[*other, *one].index):
        value, others = one.get(name), other.get(name)
        if isinstance(value, dict) and isinstance(others, dict):
            differing += [f"{name}.{inner}" for inner in _differing(value, others)]
        elif value != others:
            differing.append(name)
    return differing


def _checksums(shard_set: ShardSet, config: PretrainConfig) -> list[str]:
    return [shard.sha256 for shard in shard_set.shards(config.splits)]
