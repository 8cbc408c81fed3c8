"""The state of a run while it trains: what a checkpoint saves, and a resumed run restores."""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from siamusic_fast.config import PretrainConfig
from siamusic_fast.errors import DataError
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import BEST
from siamusic_fast.pipelines.base_loader import Loader
from siamusic_fast.training.run_folder import RunFolder
from siamusic_fast.training.run_log import Stopwatch


@dataclass(frozen=True, kw_only=True)
class PretrainFigures:
    """The latest figures of a pre-training run."""

    loss: float = math.nan
    """Mean loss of the last steps; the minimum is -1."""
    collapse: float = math.nan
    """`collapse_measure` of the last batch: healthy near 1/sqrt(d), collapsed near 0."""
    projector_rank: float = math.nan
    """`effective_rank` of the projector's outputs for the last batch."""
    encoder_rank: float = math.nan
    """`effective_rank` of the encoder's outputs for the last batch."""
    initial_knn: float | None = None
    """kNN accuracy on the validation tracks before the first step."""
    knn: float | None = None
    """Last kNN accuracy on the validation tracks, 0 to 1; None without labels."""
    best_knn: float | None = None
    """Highest kNN accuracy so far, which the checkpoint best.pt has."""


@dataclass(frozen=True, kw_only=True)
class FinetuneFigures:
    """Scores on the validation split of the classifier that is kept so far."""

    kept_epoch: int = 0
    """Epoch of that classifier, counted from 1."""
    accuracy: float | None = None
    """Accuracy on the validation tracks, 0 to 1; None of tags."""
    roc_auc: float | None = None
    """Macro ROC-AUC of the tags on the validation tracks, 0 to 1; None of classes."""
    pr_auc: float | None = None
    """Macro PR-AUC of the tags on the validation tracks, 0 to 1; None of classes."""
    loss: float = math.inf
    """Cross-entropy on the validation tracks; of tags, the mean of their binary cross-entropies."""

    @property
    def rank(self) -> tuple[float, float]:
        """What the best classifier has most of: accuracy or macro ROC-AUC, then minus the loss."""
        score = self.roc_auc if self.accuracy is None else self.accuracy
        return (-1.0 if score is None else score), -self.loss


F = TypeVar("F", PretrainFigures, FinetuneFigures)


@dataclass(kw_only=True)
class TrainState(Generic[F]):
    """Everything that changes while a network trains."""

    folder: RunFolder
    model: nn.Module
    """The network that learns. A checkpoint holds each of its parts under the name of the part."""
    optimizer: Optimizer
    loader: Loader[Any]
    figures: F
    epoch: int = 0
    """Number of epochs that are done."""
    step: int = 0
    """Number of optimizer steps that are done."""
    losses: list[Tensor] = field(default_factory=list)
    """Losses of the batches since the last line of the log."""
    saved_step: int | None = None
    """Step of the last checkpoint."""
    saved_at: float = field(default_factory=time.perf_counter)
    """Time of the last checkpoint, or of the start."""
    extended_at: tuple[int, ...] = ()
    """Epochs at which the run was to end before it was extended."""
    stopwatch: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.folder.world.device)

    def begin(self, saved: dict[str, Any] | None, lock: FolderLock, *, force: bool) -> None:
        """Go on from the checkpoint `saved`, or else start a new run. Called in every process."""
        if saved:
            self.load_state_dict(saved)
            self.folder.world.once(self.folder.write_settings)
        else:
            self.folder.world.once(lambda: self.folder.start(lock, force=force))

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        device, world, ranks = self.folder.world.device, self.folder.world, saved["ranks"]
        own = ranks[world.rank % len(ranks)]
        for name, network in self.model.named_children():
            network.load_state_dict(saved[name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loader.load_state_dict(own["loader"])
        losses = own["losses"]
        if len(ranks) != world.world_size:  # only their means over all processes count
            losses = torch.stack([one["losses"] for one in ranks]).mean(dim=0)
        self.losses = list(losses.to(device))
        self.figures = type(self.figures)(**saved["figures"])
        self.epoch, self.step, self.saved_step = saved["epoch"], saved["step"], saved["step"]
        self.extended_at = tuple(saved["extended_at"])
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"] and device.type == "cuda":
            torch.cuda.set_rng_state(own["random"]["cuda"], device)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds. Called in every process."""
        device = self.folder.world.device
        random_states = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(device)
        own = {
            "loader": self.loader.state_dict(),
            "losses": torch.stack(self.losses).cpu() if self.losses else torch.empty(0),
            "random": random_states,
        }
        return {
            "config": self.folder.values,
            "data": self.folder.shard_set.place,
            "shards": self.folder.shards,
            "frontend": self.loader.frontend.dump(),
            **{name: network.state_dict() for name, network in self.model.named_children()},
            "optimizer": self.optimizer.state_dict(),
            "figures": dataclasses.asdict(self.figures),
            "epoch": self.epoch,
            "step": self.step,
            "extended_at": list(self.extended_at),
            "ranks": self.folder.world.gather(own),
        }

    def save(self, *, best: bool = False, last: bool = False) -> bool:
        """Write the checkpoint; if the network is the `best` so far, as best.pt too. Called in every process.

        The time does not count as training. Returns whether the checkpoint was written, see `written`. Raises
        DataError in all processes, and saves nothing, if a loss or a weight is not finite.
        """
        with self.stopwatch.paused():
            content = self._finite_state_dict()
            # The other processes wait for the leading one: if one of them ended now, it would end that too.
            written = self.written(functools.partial(self._write, content, best), last=last)
            self.saved_at = time.perf_counter()
            if written:
                self.saved_step = self.step
            return written

    @property
    def checkpoint_due(self) -> bool:
        """Whether the time between two checkpoints is over. Processes may differ about it."""
        return time.perf_counter() - self.saved_at >= 60 * self.folder.config.checkpoint_minutes

    @contextlib.contextmanager
    def saved_if_interrupted(self) -> Iterator[None]:
        """Return a context that saves if an exception leaves it. Called in every process.

        It may be left at any moment, also while processes wait for each other: all that a checkpoint needs of
        the others is gathered before. Nothing that a checkpoint holds may change in the context. Its time
        does not count as training. Raises DataError as `save` does.
        """
        with self.stopwatch.paused():
            content = self._finite_state_dict()
            try:
                yield
            except BaseException:
                if self.folder.world.leads and self.saved_step != self.step:
                    self._write(content, best=False)
                raise

    def _finite_state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds. Raises DataError if a loss or a weight is not finite."""
        self.mean_losses()
        self.folder.world.share_buffers(self.model)
        if not torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all():
            raise DataError(
                f"the weights became infinite or NaN at step {self.step}, mostly a sign of too high a "
                f"learning rate: {self._remedy()}."
            )
        return self.state_dict()

    def written(self, write: Callable[[], None], *, last: bool) -> bool:
        """Call `write` in the leading process and return whether it wrote its file. Called in every process.

        Raises its DataError in all processes, or, if the run is to keep going, warns of it and returns False.
        What is the `last` to be written, because the run ends or is stopped, is never done without.
        """
        world = self.folder.world
        try:
            world.once(write)
        except DataError as error:
            if last or not self.folder.config.keep_going:
                raise
            if world.leads:
                warnings.warn(f"step {self.step}: training goes on, although {error}", stacklevel=3)
            return False
        return True

    def _write(self, content: dict[str, Any], best: bool) -> None:
        path, kind = self.folder.checkpoints.last, self.folder.checkpoints.kind
        previous = self.folder.checkpoints.previous.name
        remedy = (
            "There is no earlier checkpoint: then run the same command again with --force."
            if self.saved_step is None
            else f"The checkpoint of step {self.saved_step} is whole: then go on from it with "
            f"{self.folder.resume_command}."
        )
        if best:
            # best.pt comes first: what a checkpoint says about the best accuracy is then always true of it.
            checkpoint.save(path.with_name(BEST), kind, content, remedy=remedy)
            checkpoint.duplicate(path.with_name(BEST), path.name, previous=previous, remedy=remedy)
        else:
            checkpoint.save(path, kind, content, previous=previous, remedy=remedy)

    def mean_losses(self, *others: Tensor) -> list[float]:
        """Return the losses since the last line of the log, and the scalars `others`: means over processes.

        Waits for the device. Raises DataError in all processes if a loss is not finite.
        """
        if not self.losses and not others:
            return []
        means: list[float] = self.folder.world.mean(torch.stack([*self.losses, *others])).tolist()
        config = self.folder.config
        batches = config.grad_accum_steps if isinstance(config, PretrainConfig) else 1
        first_step = self.step - -(-len(self.losses) // batches) + 1
        for place, loss in enumerate(means[: len(self.losses)]):
            if not math.isfinite(loss):
                raise DataError(
                    f"the loss became {loss} at step {first_step + place // batches}, mostly a sign of too "
                    f"high a learning rate: {self._remedy()}."
                )
        return means

    def _remedy(self) -> str:
        lr = f"{self.folder.config.lr / 10:g}"
        last = (
            "there is no checkpoint yet"
            if self.saved_step is None
            else f"the last good checkpoint is {self.folder.checkpoints.last}, of step {self.saved_step}"
        )
        return (
            f"try lr = {lr} (with --lr {lr} on the command line); if that does not help, see whether the "
            f"data is whole with `siamusic-fast verify {self.folder.shard_set.place}`; {last}"
        )
