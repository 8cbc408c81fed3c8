"""What the processes of a training say to one another: who leads, what each has, and its gradients."""

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from siamusic_fast.processes.failures import FROM_LEADER
from siamusic_fast.processes.sync_batchnorm import synchronized

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process among those that train together. Default: alone, on the CPU."""

    rank: int = 0
    """Number of this process among all."""
    world_size: int = 1
    """Number of all processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    id: str = ""
    """Of the job, the same after it was started again; empty for a process that nothing starts again."""
    restarts: int = 0
    """How often the job was started again after one of its processes died."""
    cpu_group: dist.ProcessGroup | None = None
    """Joins the processes on the CPU, for words that the GPUs need not wait for."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, sync_batchnorm: bool = False) -> nn.Module:
        """Return `model`, with gradients averaged over the processes if there are several.

        With `sync_batchnorm`, batch norms take the statistics of all batches; state dicts stay as they are.
        Each process keeps buffers of its own until `share_buffers`.
        """
        if self.world_size == 1:
            return model
        return DistributedDataParallel(
            synchronized(model, self.device) if sync_batchnorm else model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
        )

    def once(self, function: Callable[[], T]) -> T:
        """Call `function` in the leading process only and return its result, or raise its error, in all."""
        if self.world_size == 1:
            return function()
        box: list[Any] = [_outcome(function) if self.leads else None]
        dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        result, error = box[0]
        if error is None:
            return cast(T, result)
        if not self.leads:
            error.add_note(FROM_LEADER)
        raise error

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def highest(self, *values: int) -> list[int]:
        """Return the highest that any process has of each of `values`, which are on the CPU: cheap."""
        if self.world_size == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.cpu_group)
        highest: list[int] = found.tolist()
        return highest

    def mean(self, values: Tensor) -> Tensor:
        """Return `values` averaged over the processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the leading one's buffers of `model`.

        Each has batch norm statistics of its own: what is scored must be what the leading one saves.
        """
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier(group=self.cpu_group)


def gradients_kept_apart(model: nn.Module, apart: bool) -> AbstractContextManager[None]:
    """Return a context in which `backward` leaves each process's gradients to itself, if `apart`."""
    if apart and isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return the result of `function`, or the error that it raises, as one that can be sent."""
    try:
        return function(), None
    except Exception as error:  # of any kind: all processes raise it
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # with what cannot be pickled or made again
            return None, RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        return None, error
