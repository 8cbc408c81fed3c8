"""The folder of a run: how a run is started and resumed in it, and which runs can go on."""

import contextlib
import dataclasses
import itertools
import json
import re
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siamusic_fast import config as settings
from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.folder_lock import FolderLock, is_locked
from siamusic_fast.models import checkpoint
from siamusic_fast.models.pretrained import Pretrained
from siamusic_fast.models.run_files import (
    BEST,
    CONFIG,
    OF_CLASSIFIERS,
    OF_RUNS,
    Checkpoints,
    new_folder,
    save_json,
)
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet

_WORLD_ID = ".job"
"""File with the id of the job that trains the run."""
_MAY_CHANGE = ("checkpoint_minutes", "knn_every")
"""Settings that do not affect the weights: a resumed run may have others."""
STATE_PARTS = (
    *("config", "frontend", "data", "shards", "extended_at"),
    *("optimizer", "epoch", "step", "figures", "ranks"),
)
"""What every checkpoint of a run holds beside the weights."""
CHECKPOINT_PARTS = (*STATE_PARTS, "encoder", "projector", "predictor")
"""What a checkpoint of pre-training holds."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of a run that is being trained, what the run is made from, and its processes."""

    checkpoints: Checkpoints
    parts: tuple[str, ...]
    """What a checkpoint of the run holds."""
    config: PretrainConfig | FinetuneConfig
    pretraining: dict[str, Any] = field(default_factory=dict)
    """Settings of the pre-training run that fine-tuning starts from; a resumed run must share them."""
    origin: dict[str, str] = field(default_factory=dict)
    """What else config.json says about where the run comes from."""
    shard_set: ShardSet
    shards: list[str]
    """SHA-256 of each shard that the run reads."""
    world: World
    own_files: re.Pattern[str] = OF_RUNS
    """Names of the files that a new run may replace."""
    resume_command: str
    """What to do to resume the run, for error messages."""

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.checkpoints.folder

    @property
    def values(self) -> dict[str, Any]:
        """Settings that a resumed run must share, as plain values."""
        values = settings.dump(self.config)
        return {**values, "pretraining": self.pretraining} if self.pretraining else values

    def start(self, lock: FolderLock, *, force: bool) -> None:
        """Make the folder of a new run, lock it, and write its settings."""
        new_folder(self.path, force=force, own=self.own_files, lock=lock)
        self.write_settings()

    def write_settings(self) -> None:
        """Write the settings where a person reads them, and from where they can be used again."""
        values = {**settings.dump(self.config), **self.origin, "data": str(self.shard_set.folder)}
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
        path = world.once(lambda: checkpoints.newest_whole)
        saved = checkpoint.load(path, checkpoints.kind, self.parts)
        self._check_resumable(saved)
        if path == checkpoints.previous:
            if world.leads:
                warnings.warn(
                    f"{checkpoints.last} is {checkpoints.problem}: {path.name}, of step {saved['step']}, "
                    f"takes its place and the run goes on from there",
                    stacklevel=3,
                )
            world.wait_for_all()  # until each process has read the file under its old name
            world.once(checkpoints.restore_previous)
        return self._extended(saved) if self.config.epochs > saved["config"]["epochs"] else saved

    def _extended(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint `saved` of a run that gets more epochs; warn if its cosine starts anew."""
        before, epochs = saved["config"]["epochs"], self.config.epochs
        if self.world.leads and self._has_cosine:
            warnings.warn(
                f"{self.path} is extended from {before} to {epochs} epochs: after epoch {before} the "
                f"learning rate starts a new cosine at lr = {self.config.lr:g}",
                stacklevel=4,
            )
        return {**saved, "extended_at": [*saved["extended_at"], before]}

    @property
    def _has_cosine(self) -> bool:
        return isinstance(self.config, PretrainConfig) and self.config.schedule == "cosine"

    def _check_resumable(self, saved: dict[str, Any]) -> None:
        """Raise ConfigError or DataError if this job cannot go on exactly from the checkpoint `saved`."""
        before, epochs = saved["config"].get("epochs"), self.config.epochs
        may_change = (*_MAY_CHANGE, "epochs") if before and epochs > before else _MAY_CHANGE
        differing = [name for name in _differing(saved["config"], self.values) if name not in may_change]
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
        processes = len(saved["ranks"])
        if processes != self.world.world_size:
            raise ConfigError(
                f"{self.path} was started with {processes} processes, not {self.world.world_size}: start as "
                f"many (on the command line --gpus {processes}, or --procs {processes} on the CPU)."
            )
        if saved["shards"] != self.shards:
            raise DataError(
                f"{self.path} was started with other shards than those in {self.shard_set.folder}: use "
                f"{saved['data']} (on the command line --data {shlex.quote(saved['data'])})."
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


def checksums(shard_set: ShardSet, splits: Sequence[str], labelled_only: bool = False) -> list[str]:
    """Return the SHA-256 of each shard of `splits`."""
    return [shard.sha256 for shard in shard_set.shards(splits, labelled_only)]


def pretraining_folder(config: PretrainConfig, shard_set: ShardSet, out: Path, world: World) -> RunFolder:
    """Return the folder `out` of the pre-training run with `config`."""
    gpus, procs = (0, world.world_size) if world.device.type == "cpu" else (world.world_size, 1)
    options = f" --gpus {gpus}{f' --procs {procs}' if procs > 1 else ''}"
    return RunFolder(
        checkpoints=Checkpoints(out),
        parts=CHECKPOINT_PARTS,
        config=config,
        shard_set=shard_set,
        shards=checksums(shard_set, config.splits),
        world=world,
        resume_command=f"`siamusic-fast pretrain --resume {shlex.quote(str(out))}{options}`",
    )


def finetuning_folder(
    config: FinetuneConfig, run: Path, pretrained: Pretrained, shard_set: ShardSet, out: Path, world: World
) -> RunFolder:
    """Return the folder `out` of the fine-tuning with `config` of the pre-training run `run`."""
    free = (*_MAY_CHANGE, "epochs")  # of a run that was resumed meanwhile
    return RunFolder(
        checkpoints=Checkpoints(out, "finetuning", "finetune-checkpoint"),
        parts=(*STATE_PARTS, "encoder", "projector", "head"),
        config=config,
        pretraining={name: value for name, value in pretrained.pretraining.items() if name not in free},
        origin={"run": str(run)},
        shard_set=shard_set,
        shards=checksums(shard_set, ("training", "validation"), labelled_only=True),
        world=world,
        own_files=OF_CLASSIFIERS,
        resume_command="the same command and --resume",
    )


def was_begun_by(world: World, run: Path) -> bool:
    """Whether the job of `world` itself began `run` before the job was started again."""
    return (run / _WORLD_ID).is_file() and (run / _WORLD_ID).read_text() == world.id


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint of pre-training in `run`, the last one or the one before."""
    return Checkpoints(run).exist


def load_run(run: Path) -> tuple[PretrainConfig, str]:
    """Return the configuration of a run and its folder of shards. Raises DataError without a checkpoint."""
    saved = _load(run)
    return settings.load_pretrain(saved["config"]), saved["data"]


def _load(run: Path) -> dict[str, Any]:
    return checkpoint.load(Checkpoints(run).newest_whole, "pretraining", CHECKPOINT_PARTS)


def is_abandoned(run: Path) -> bool:
    """Whether `run` is a pre-training run that ended before its first checkpoint: it holds no results."""
    results = (BEST, "finetune", "evaluate", "probe")
    return (
        _is_of_pretraining(run)
        and not has_checkpoint(run)
        and not any((run / name).exists() for name in results)
        and not is_locked(run)
    )


def _is_of_pretraining(run: Path) -> bool:
    """Whether the settings in `run` are those of pre-training, not of a classifier."""
    try:
        values = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = {field.name for field in dataclasses.fields(PretrainConfig)}
    return isinstance(values, dict) and names <= values.keys()


def is_finished(run: Path, config: PretrainConfig, shard_set: ShardSet) -> bool:
    """Whether `run` has done all epochs of `config` on these very shards."""
    if not has_checkpoint(run):
        return False
    saved = _load(run)
    found = [saved["epoch"], saved["config"], saved["shards"]]
    return found == [config.epochs, settings.dump(config), checksums(shard_set, config.splits)]


def newest_unfinished(runs: Path) -> Path | None:
    """Return the run in `runs` that was saved last, of those that have epochs left and are not in use."""
    saved_at: dict[Path, float] = {}
    for path in itertools.chain(runs.glob("*/checkpoint-previous.pt"), runs.glob("*/checkpoint.pt")):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            saved_at[path.parent] = path.stat().st_mtime
    for run in sorted(saved_at, key=saved_at.__getitem__, reverse=True):
        if is_locked(run):
            continue
        with contextlib.suppress(DataError):  # of another version, or damaged
            saved = _load(run)
            if saved["epoch"] < saved["config"]["epochs"]:
                return run
    return None
