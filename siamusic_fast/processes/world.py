"""The processes that train together: which one this is, and what they send to each other."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from siamusic_fast.processes.environment import TIMEOUT
from siamusic_fast.processes.failures import error_to_words, repeated_from_leader
from siamusic_fast.processes.sync_batchnorm import with_sync_batchnorm

T = TypeVar("T")

_BEAT = 1.0
"""Seconds between messages of the leading process that it is at work."""
_AT_WORK = -1
"""Sent in the place of the size of a message by a process that has none yet."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process among those that train together. Default: alone, on the CPU.

    Processes send each other tensors and plain values (numbers, text, lists, dicts) only. Tensors that were
    sent are on the CPU.
    """

    rank: int = 0
    """Number of this process, from 0."""
    world_size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device on which this process trains."""
    id: str = ""
    """Identifies the launch; the same after a restart. Empty if nothing starts the processes again."""
    restarts: int = 0
    """How often the processes were started again after one of them died."""
    timeout: float = TIMEOUT
    """Seconds that a process waits for another before it ends with an error."""
    cpu_group: dist.ProcessGroup | None = None
    """Process group for messages on the CPU, which do not wait for the GPUs. None: the default group."""

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
            with_sync_batchnorm(model, self.device) if sync_batchnorm else model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
        )

    def once(self, function: Callable[[], T]) -> T:
        """Call `function` in the leading process only and return its result in all processes.

        The result holds tensors and plain values only. `function` may take longer than `timeout`: the others
        wait as long as the leading process lives and is reached, even if `function` hangs. If it raises, all
        processes raise: a SiamusicError with its class and message, any other error with its message.
        """
        if self.world_size == 1:
            return function()
        if not self.leads:
            result, words = self._broadcast()
            if words:
                raise repeated_from_leader(words)
            return cast(T, result)
        try:
            with self._shown_at_work():
                result = function()
        except Exception as error:
            self._broadcast((None, error_to_words(error)))
            raise
        self._broadcast((result, None))
        return result

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank; it holds tensors and plain values only."""
        if self.world_size == 1:
            return [value]
        return [self._broadcast(value, source) for source in range(self.world_size)]

    def max(self, *values: int) -> list[int]:
        """Return the maximum over the processes of each of `values`. Does not wait for the GPUs."""
        if self.world_size == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.cpu_group)
        maxima: list[int] = found.tolist()
        return maxima

    def mean(self, values: Tensor) -> Tensor:
        """Return `values` averaged over the processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the leading process's buffers of `model` to all processes.

        Each has batch norm statistics of its own: what is scored must be what the leading one saves.
        """
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        if self.world_size > 1:
            dist.barrier(group=self.cpu_group)

    @contextmanager
    def _shown_at_work(self) -> Iterator[None]:
        """Tell the others every second that the leading process is at work, so that they go on waiting."""
        done = threading.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # another process has ended, which the result's broadcast finds too
                while not done.wait(_BEAT):
                    dist.broadcast(torch.tensor([_AT_WORK]), 0, group=self.cpu_group)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            if not isinstance(sys.exception(), KeyboardInterrupt):  # which ends all at once
                thread.join()

    def _broadcast(self, value: Any = None, source: int = 0) -> Any:
        """Return the `value` of process `source` in all processes; reading it runs no code of the sender."""
        sent = b""
        if self.rank == source:
            file = io.BytesIO()
            torch.save(value, file)
            sent = file.getvalue()
        size = torch.tensor([len(sent)])
        dist.broadcast(size, source, group=self.cpu_group)
        while int(size) == _AT_WORK:
            dist.broadcast(size, source, group=self.cpu_group)
        data = torch.frombuffer(bytearray(sent or int(size)), dtype=torch.uint8)
        dist.broadcast(data, source, group=self.cpu_group)
        return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)


def rows_of_all(values: Tensor) -> Tensor:
    """Return the rows of `values` [B, d] of all processes, by rank: [processes * B, d].

    Gradients flow back to the process that each row is from. Every process must have as many rows.
    """
    if not dist.is_initialized():
        return values
    parts = values.new_zeros(dist.get_world_size(), *values.shape)
    parts[dist.get_rank()] = values
    total: Tensor = all_reduce(parts)  # type: ignore[no-untyped-call]
    return total.flatten(0, 1)


def gradients_kept_apart(model: nn.Module, apart: bool) -> AbstractContextManager[None]:
    """Return a context in which, if `apart`, `backward` does not average gradients over the processes."""
    if apart and isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()
