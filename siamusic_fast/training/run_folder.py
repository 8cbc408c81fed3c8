"""The folder of a run: how a run is started and resumed in it, and which runs can go on."""

import contextlib
import shlex
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import SETTINGS_LIMIT, read_regular
from siamusic_fast.folder_lock import FolderLock, is_locked
from siamusic_fast.models import checkpoint
from siamusic_fast.models.networks import RANDOM_DEPTH
from siamusic_fast.models.pretrained import Pretrained
from siamusic_fast.models.run_files import (
    BEST,
    CONFIG,
    OF_CLASSIFIERS,
    OF_RUNS,
    Checkpoints,
    new_folder,
    read_config,
    save_json,
)
from siamusic_fast.pipelines.random_numbers import BLOCK
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.checks import share_of_batch

_WORLD_ID = ".job"
"""File with the id of the job that trains the run."""
_MAY_CHANGE = ("checkpoint_minutes", "knn_every", "keep_going", "logger")
"""Settings that do not affect the weights: a resumed run may have others."""
_SHARED_ANEW = ("batch_size", "sync_batchnorm")
"""Settings that may change with the number of processes, as long as the batch of all of them does not."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run that is being trained, what the run is made from, and its processes."""

    path: Path
    config: PretrainConfig | FinetuneConfig
    shard_set: ShardSet
    world: World
    pretrained: Pretrained | None = None
    """The encoder that fine-tuning starts from; None: the run is one of pre-training."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the folder."""
        return Checkpoints(self.path, "finetuning" if self.pretrained else "pretraining")

    @property
    def values(self) -> dict[str, Any]:
        """Settings that a resumed run must share, as plain values: also those of the pre-training run."""
        values = settings.dump(self.config)
        if self.pretrained:
            may_change = dict.fromkeys((*_MAY_CHANGE, "epochs"))
            values["pretraining"] = {**self.pretrained.pretraining, **may_change}
        return values

    @property
    def shards(self) -> list[str]:
        """SHA-256 of each shard that the run reads."""
        if isinstance(self.config, PretrainConfig):
            shards = self.shard_set.shards(self.config.splits)
        else:
            of_class = self.config.target == "class"
            shards = self.shard_set.shards(("training", "validation"), labelled_only=of_class)
        return [shard.sha256 for shard in shards]

    @property
    def resume_command(self) -> str:
        """What a person runs to resume the run."""
        if self.pretrained:
            return "the same command and --resume"
        procs = f" --procs {self.world.world_size}" if self.world.world_size > 1 else ""
        on_cpu = self.world.device.type == "cpu"
        options = f"--gpus 0{procs}" if on_cpu else f"--gpus {self.world.world_size}"
        return f"`siamusic-fast pretrain --resume {shlex.quote(str(self.path))} {options}`"

    def was_begun_by_this_job(self) -> bool:
        """Whether this job began the run itself, before it was started again."""
        file = self.path / _WORLD_ID
        return self.world.restarts > 0 and (
            file.is_file() and read_regular(file, SETTINGS_LIMIT) == self.world.id.encode()
        )

    def start(self, lock: FolderLock, *, force: bool) -> None:
        """Make the folder of a new run, lock it, and write its settings."""
        own = OF_CLASSIFIERS if self.pretrained else OF_RUNS
        new_folder(self.path, force=force, own=own, lock=lock)
        self.write_settings()

    def write_settings(self) -> None:
        """Write the settings where a person reads them, and from where they can be used again."""
        values = {**settings.dump(self.config), "data": self.shard_set.place}
        if self.pretrained:
            values["run"] = str(self.pretrained.path.parent)
        save_json(self.path / CONFIG, {**values, "processes": self.world.world_size})
        if self.world.id:
            (self.path / _WORLD_ID).write_text(self.world.id)

    def reopen(self, lock: FolderLock) -> dict[str, Any]:
        """Lock the folder of a run and return its last whole checkpoint. Called in every process.

        Warns if that is not the newest one, and puts it in the place of the newest. Raises ConfigError or
        DataError if this job cannot go on exactly where the run was stopped.
        """
        checkpoints, world = self.checkpoints, self.world
        world.once(lambda: lock.take(self.path) if self.path.is_dir() else None)
        goes_back = world.once(checkpoints.only_previous_is_whole)
        path = checkpoints.previous if goes_back else checkpoints.last
        saved = checkpoint.load(path, checkpoints.kind)
        self._check_resumable(saved)
        if goes_back:
            if world.leads:
                warnings.warn(
                    f"{checkpoints.last} is {checkpoints.problem}: {path.name}, of step {saved['step']}, "
                    f"takes its place and the run goes on from there",
                    stacklevel=3,
                )
            world.wait_for_all()  # until each process has read the file under its old name
            world.once(checkpoints.restore_previous)
        before, epochs = saved["config"]["epochs"], self.config.epochs
        if world.leads and len(saved["ranks"]) != world.world_size:
            warnings.warn(self._how_shared_anew(saved), stacklevel=3)
        if epochs > before:
            saved["extended_at"].append(before)
            has_cosine = self.config.schedule == "cosine"
            if world.leads and has_cosine:
                warnings.warn(
                    f"{self.path} is extended from {before} to {epochs} epochs: after epoch {before} the "
                    f"learning rate starts a new cosine at lr = {self.config.lr:g}",
                    stacklevel=3,
                )
        return saved

    def _check_resumable(self, saved: dict[str, Any]) -> None:
        """Raise ConfigError or DataError if this job cannot go on exactly from the checkpoint `saved`."""
        before, epochs = saved["config"].get("epochs"), self.config.epochs
        may_change = (*_MAY_CHANGE, "epochs") if before and epochs > before else _MAY_CHANGE
        processes, now = len(saved["ranks"]), self.world.world_size
        if processes != now:
            may_change = (*may_change, *_SHARED_ANEW)
        differing = [
            name for name in differing_settings(saved["config"], self.values) if name not in may_change
        ]
        if differing == ["epochs"]:
            raise ConfigError(
                f"epochs = {epochs} is less than the {before} of {self.path}: it can only become more "
                f"(on the command line --epochs)."
            )
        if differing:
            raise ConfigError(
                f"{self.path} was started with another {', '.join(differing)}: "
                f"resume it with what its {CONFIG} says."
            )
        if saved["epoch"] >= epochs:
            raise DataError(
                f"{self.path} has all of its {epochs} epochs: there is nothing to resume; more epochs extend "
                f"it (on the command line --epochs {2 * epochs})."
            )
        batch_size = saved["config"]["batch_size"]
        fitting = share_of_batch(self.path, processes, batch_size, now)
        if self.config.batch_size != fitting:
            raise ConfigError(
                f"{self.path} was trained with batches of {processes} x {batch_size} = "
                f"{processes * batch_size}, not {now} x {self.config.batch_size}: use batch_size = {fitting} "
                f"for the same tracks in every step (on the command line --batch-size {fitting})."
            )
        if saved["shards"] != self.shards:
            raise DataError(
                f"{self.path} was started with other shards than those in {self.shard_set.place}: use "
                f"{saved['data']} (on the command line --data {shlex.quote(saved['data'])})."
            )

    def _how_shared_anew(self, saved: dict[str, Any]) -> str:
        """Return what is equal to a run in as many processes as `saved` is from, and what is not."""
        values, processes, now = saved["config"], len(saved["ranks"]), self.world.world_size
        old = replace(self.config, **{name: values[name] for name in _SHARED_ANEW if name in values})
        before, after = old.batch_size, self.config.batch_size
        views = "the same crops and augmentations"
        if before % BLOCK or after % BLOCK:
            views = (
                f"other crops and augmentations, as {before} and {after} are not both multiples of {BLOCK}"
            )
        seen, sees = _seen_by_batchnorm(old, processes), _seen_by_batchnorm(self.config, now)
        if seen != sees:
            weights = f"Batch norm sees {sees} at a time instead of {seen}, so the weights will be others"
        elif self._skips_blocks:
            weights = (
                "Other blocks of the network are skipped (stochastic depth), so the weights will be others"
            )
        else:
            weights = "Sums are added up in another order, so figures are rounded differently"
        return (
            f"{self.path} goes on with batches of {now} x {after} instead of {processes} x {before}: every "
            f"step has the same tracks, with {views}. {weights}"
        )

    @property
    def _skips_blocks(self) -> bool:
        """Whether each process draws which blocks of the network to skip."""
        if isinstance(self.config, PretrainConfig):
            return self.config.backbone in RANDOM_DEPTH
        return not self.config.freeze and self.values["pretraining"]["backbone"] in RANDOM_DEPTH


def _seen_by_batchnorm(config: PretrainConfig | FinetuneConfig, processes: int) -> int:
    """Return over how many pairs or crops batch norm takes its statistics; 0 if it keeps those it has."""
    if isinstance(config, FinetuneConfig):
        return 0 if config.freeze else config.batch_size
    return config.batch_size * (processes if config.synchronizes_batchnorm else 1)


def differing_settings(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ, such as lr or mel.seconds."""
    differing = []
    for name in sorted({**one, **other}, key=[*other, *one].index):
        value, others = one.get(name), other.get(name)
        if isinstance(value, dict) and isinstance(others, dict):
            differing += [f"{name}.{inner}" for inner in differing_settings(value, others)]
        elif value != others:
            differing.append(name)
    return differing


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """What the last checkpoint of a pre-training run says of it."""

    path: Path
    config: PretrainConfig
    data: str
    """Folder of its shards."""
    processes: int
    """Number of processes that wrote the checkpoint."""

    def config_for(self, processes: int) -> PretrainConfig:
        """Return the configuration with which so many `processes` go on with the same tracks in every step.

        Batch norm goes on to see the batches of all processes, or of one, as it did.
        Raises ConfigError if the batch of all processes cannot be shared by so many.
        """
        config = self.config
        if processes == self.processes:
            return config
        whole = self.processes == 1 or config.synchronizes_batchnorm
        return replace(
            config,
            batch_size=share_of_batch(self.path, self.processes, config.batch_size, processes),
            sync_batchnorm=whole if config.sync_batchnorm is None else config.sync_batchnorm,
        )


def load_run(run: Path) -> EarlierRun:
    """Return what the last checkpoint of `run` says of it. Raises DataError without a checkpoint."""
    saved = checkpoint.load(Checkpoints(run).newest_whole(), "pretraining")
    config = settings.load_pretrain(saved["config"])
    return EarlierRun(path=run, config=config, data=saved["data"], processes=len(saved["ranks"]))


def is_abandoned(run: Path) -> bool:
    """Whether `run` is a pre-training run that ended before its first checkpoint: it holds no results."""
    try:
        is_of_pretraining = "backbone" in read_config(run)
    except (OSError, ValueError):
        return False
    results = (BEST, "finetune", "evaluate", "probe")
    return (
        is_of_pretraining
        and not Checkpoints(run).exist()
        and not any((run / name).exists() for name in results)
        and not is_locked(run)
    )


def newest_unfinished(runs: Path) -> Path | None:
    """Return the run in `runs` that was saved last, of those that have epochs left and are not in use."""
    saved_at: dict[Path, float] = {}
    for path in runs.glob("*/checkpoint*.pt"):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            saved_at[path.parent] = max(saved_at.get(path.parent, 0.0), path.stat().st_mtime)
    for run in sorted(saved_at, key=saved_at.__getitem__, reverse=True):
        if is_locked(run):
            continue
        with contextlib.suppress(DataError):  # of another version, or damaged
            saved = checkpoint.load(Checkpoints(run).newest_whole(), "pretraining")
            if saved["epoch"] < saved["config"]["epochs"]:
                return run
    return None
