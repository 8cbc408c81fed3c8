"""Several processes that train as one: starting them, joining them, sharing between them."""

import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from siamusic_fast.errors import ConfigError, DataError, DeviceError, SiamusicError
from siamusic_fast.shards.pool import cores

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The place of this process among those that train together. Default: alone, on the CPU."""

    rank: int = 0
    """Number of this process among all."""
    world_size: int = 1
    """Number of all processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model`, with gradients averaged over the processes if there are several."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def once(self, function: Callable[[], T]) -> T:
        """Call `function` in the leading process only and return its result in all."""
        if self.world_size == 1:
            return function()
        box: list[Any] = [function() if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Return `values` averaged over the processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values


class JobFunction(Protocol[R_co]):
    """What a job runs; picklable, such as a `functools.partial` of a function in a module."""

    def __call__(self, *, job: Job) -> R_co: ...


def launch(function: JobFunction[T], *, gpus: int | None = None, workers: int | None = None) -> T:
    """Call `function(job=...)` in every process of a job and return the leading one's result.

    `gpus` GPUs have one process each; `None` is one GPU if there is one, else the CPU. On the CPU (`gpus=0`)
    there are `workers` processes. A single one is this process; several are started on this machine by
    torch's elastic launcher, and import the main module of the calling program. Under `torchrun` this process
    is a member already and joins the others. Raises what any process raises that is a SiamusicError, and
    KeyboardInterrupt if the job was interrupted.
    """
    gpus = _check_gpus(gpus)
    if gpus and workers not in (None, gpus):
        raise ConfigError(
            f"--workers {workers} does not fit --gpus {gpus}: each GPU has one process; leave it out."
        )
    processes = gpus or workers or 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _join(function, on_gpu=gpus > 0)
    if processes == 1:
        return function(job=Job(device=_device(0, on_gpu=gpus > 0)))
    return _start(function, processes, on_gpu=gpus > 0)


def device_for(gpus: int | None) -> torch.device:
    """Return the device of work that one process does; `gpus` is 0, 1, or `None`: a GPU if there is one."""
    found = _check_gpus(gpus)
    if found > 1:
        raise ConfigError(f"--gpus {found}: this command uses one; give --gpus 1.")
    return _device(0, on_gpu=found > 0)


def is_leader() -> bool:
    """Whether this process is alone or the first of a `torchrun` job: the one to print."""
    return os.environ.get("RANK", "0") == "0"


def _start(function: JobFunction[T], processes: int, on_gpu: bool) -> T:
    # The launcher logs a failure in a dozen lines of its own; what is raised below says it all.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            results: dict[int, T] = elastic_launch(config, _join)(function, on_gpu)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            raise _mistake(error) or error from None
    return results[0]


def _join(function: JobFunction[T], on_gpu: bool) -> T:
    """Be the process of a job that the environment says, as torchrun and the elastic launcher set it."""
    with _process_group(on_gpu) as job:
        return function(job=job)


@contextmanager
def _process_group(on_gpu: bool) -> Iterator[Job]:
    device = _device(int(os.environ["LOCAL_RANK"]), on_gpu)
    torch.set_num_threads(max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    yield Job(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)
    # Not after an error: the others would have to take part, and the launcher ends them anyway.
    dist.destroy_process_group()


def _device(index: int, on_gpu: bool) -> torch.device:
    if not on_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    return device


def _check_gpus(gpus: int | None) -> int:
    visible = torch.cuda.device_count()
    if gpus is None:
        return min(visible, 1)
    if gpus > 0 and visible == 0:
        raise DeviceError(f"--gpus {gpus} asks for a GPU and none is visible; use --gpus 0 for the CPU.")
    if gpus > visible:
        raise DeviceError(f"--gpus {gpus} asks for more than the {visible} visible; use --gpus {visible}.")
    return gpus


def _mistake(error: ChildFailedError) -> SiamusicError | None:
    """Return the user's mistake that ended a process, if it was one: the launcher keeps only its text."""
    for failure in error.failures.values():
        report: Any = failure.message
        if isinstance(report, dict):
            name, _, text = report["message"].partition(": ")
            for kind in (ConfigError, DataError, DeviceError):
                if name == kind.__name__:
                    return kind(text)
    return None
