"""Several processes that train as one: starting them, and joining them."""

import dataclasses
import functools
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from siamusic_fast.errors import ConfigError, DataError, DeviceError, SiamusicError
from siamusic_fast.processes import loopback as one_machine
from siamusic_fast.processes import slurm
from siamusic_fast.processes.failures import WorkerError, describe
from siamusic_fast.processes.pool import end_with_parent, share_of_cores
from siamusic_fast.processes.rendezvous import meet
from siamusic_fast.processes.signals import STOPPING, Stopped
from siamusic_fast.processes.world import World

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

_HANDLED_BY_LAUNCHER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_BLAME_AFTER = 5.0
"""Seconds that a process whose partner went away waits to be ended, so that the partner's error is shown."""
_SAVE_WITHIN = 8.0
"""Seconds that a process whose launcher was killed has to save and end; torch sends it a SIGINT then."""
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_ENDED_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


class WorldFunction(Protocol[R_co]):
    """What a job runs; picklable, such as a `functools.partial` of a function in a module."""

    def __call__(self, *, world: World) -> R_co: ...


def launch(
    function: WorldFunction[T], *, gpus: int | None = None, procs: int | None = None, max_restarts: int = 0
) -> T:
    """Call `function(job=...)` in every process of a job and return the leading one's result.

    `gpus` GPUs have one process each; `None` is one GPU if there is one, else the CPU. On the CPU (`gpus=0`)
    there are `procs` processes. A single one is this process; several are started on this machine by
    torch's elastic launcher, and import the main module of the calling program. Under `torchrun` and in a
    step of SLURM's `srun` this process is a member already and joins the others.

    Raises what any process raises that is a SiamusicError; SiamusicError as well if one was killed, could not
    use a file, or ran out of the GPU's memory; WorkerError if one failed otherwise, after it started all of
    them `max_restarts` times again; Stopped if the job was interrupted. No process is left behind.
    """
    processes, on_gpu = processes_wanted(gpus, procs), _uses_gpus(gpus)
    if place := _place():
        _refuse_restarts(max_restarts)
        os.environ.update(place)
        return _join(function, on_gpu)
    if processes == 1 and max_restarts == 0:
        with _explained():
            return function(world=World(device=_device(0, on_gpu)))
    return _start(function, processes, on_gpu, max_restarts)


def processes_wanted(gpus: int | None = None, procs: int | None = None) -> int:
    """Return how many processes `launch` would have in its job, or raise its errors."""
    if place := _place():
        _check_gpus(gpus and 1)
        return int(place["WORLD_SIZE"])
    found = _check_gpus(gpus)
    if found and procs not in (None, found):
        raise ConfigError(
            f"procs = {procs} does not fit gpus = {gpus}: each GPU has one process; leave procs out "
            f"(on the command line --procs)."
            if gpus
            else f"procs = {procs} asks for processes on the CPU, and a GPU is visible: add gpus=0 (on "
            f"the command line --gpus 0)."
        )
    return found or procs or 1


def device_for(gpus: int | None) -> torch.device:
    """Return the device of work that one process does; `gpus` is 0, 1, or `None`: a GPU if there is one."""
    found = _check_gpus(gpus)
    if found > 1:
        raise ConfigError(f"gpus = {found} is too many, one is used: give 1 (on the command line --gpus 1).")
    return _device(0, on_gpu=found > 0)


def is_leader() -> bool:
    """Whether this process is alone or the first of a job of `torchrun` or SLURM: the one to print."""
    return _place().get("RANK", "0") == "0"


def starts_again() -> bool:
    """Whether this is a process of torchrun that is started again if one of them dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _place() -> dict[str, str]:
    """Return RANK and so on of a process that torch's launcher or SLURM started; empty for another."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return dict(os.environ)
    return slurm.torch_environment(os.environ)


def _refuse_restarts(max_restarts: int) -> None:
    """Raise ConfigError if a process that another launcher started is to start processes again."""
    if max_restarts:
        raise ConfigError(
            f"max_restarts = {max_restarts} is for processes that are started here, not for those of "
            f"torchrun or SLURM: leave it out (on the command line --max-restarts), and give torchrun its "
            f"own --max-restarts, or sbatch --requeue."
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a lack of the GPU's memory into an error that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the GPU's memory does not suffice ({str(error).splitlines()[0]}): use a smaller batch_size, in "
            f"pre-training with accumulate for as many pairs per step (on the command line --batch-size and "
            f"--grad-accum-steps)."
        ) from error


def _start(function: WorldFunction[T], processes: int, on_gpu: bool, max_restarts: int) -> T:
    # The launcher logs a failure in a dozen lines of its own; what is raised below says it all.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    with one_machine.private_folder() as folder, _own_handlers():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend=one_machine.RENDEZVOUS,
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        try:
            called = functools.partial(_without_restart, function) if max_restarts else function
            results: dict[int, T | _Mistake] = elastic_launch(config, _spawned)(called, on_gpu, folder)
        except SignalException as error:
            raise Stopped(error.sigval) from None
        except ChildFailedError as error:
            raise _failure(error) from None
    if isinstance(result := results[0], _Mistake):
        raise result.error
    return result


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Give back the signal handlers that the launcher replaces."""
    before = {number: signal.getsignal(number) for number in _HANDLED_BY_LAUNCHER}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class _Mistake:
    """What a process returns when all of them met an error that another start would meet as well."""

    error: SiamusicError


def _spawned(function: WorldFunction[T], on_gpu: bool, folder: Path) -> T:
    """Be a process that the launcher started; stopped, end in a way that it does not take for success."""
    end_with_parent(_SAVE_WITHIN)
    try:
        return _join(function, on_gpu, folder)
    except OSError as error:
        raise DataError(describe(error)) from error
    except KeyboardInterrupt as stop:
        raise SystemExit(stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT) from None


def _without_restart(function: WorldFunction[T], *, world: World) -> T | _Mistake:
    """Call `function`; an error that all processes raise is returned, as the launcher would start them again.

    An error of one of them is raised: the others wait for it, and the launcher is to end them.
    """
    try:
        with _explained():
            return function(world=world)
    except SiamusicError as error:
        if _everywhere(world):
            return _Mistake(error)
        raise


def _everywhere(world: World) -> bool:
    """Whether every process comes here within seconds."""
    store = dist.distributed_c10d._get_default_store()
    come, until = store.add("mistakes", 1), time.monotonic() + _BLAME_AFTER
    while come < world.world_size and time.monotonic() < until:
        time.sleep(0.05)
        come = store.add("mistakes", 0)
    return come == world.world_size


def _join(function: WorldFunction[T], on_gpu: bool, folder: Path | None = None) -> T:
    """Be the process of a job that the environment says, as torchrun and the elastic launcher set it.

    `folder` is the private one of a launcher of ours.
    """
    try:
        with _process_group(on_gpu, folder) as world, _explained():
            return function(world=world)
    except RuntimeError as error:
        if any(words in str(error) for words in _ENDED_CONNECTION):
            time.sleep(_BLAME_AFTER)
        raise


@contextmanager
def _process_group(on_gpu: bool, folder: Path | None) -> Iterator[World]:
    device = _device(int(os.environ["LOCAL_RANK"]), on_gpu)
    torch.set_num_threads(share_of_cores())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if one_machine.all_are_here():
        one_machine.keep_to_loopback()
    store, name = _store_and_name(folder, rank, world_size)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore(meet(store, rank, world_size), store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world_size,
        device_id=device if on_gpu else None,
    )
    world = World(
        rank=rank,
        world_size=world_size,
        device=device,
        id=name,
        cpu_group=dist.new_group(backend="gloo") if on_gpu else None,
    )
    # A node counts the failures of its own processes only.
    (restarts,) = world.highest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    yield dataclasses.replace(world, restarts=restarts)
    # Not after an error: the others would have to take part, and the launcher ends them anyway.
    dist.destroy_process_group()


def _store_and_name(folder: Path | None, rank: int, world_size: int) -> tuple[Store, str]:
    """Return where the processes of the job meet, and the job's id: see `Job.id`."""
    if folder:
        return one_machine.file_store(folder), os.environ["TORCHELASTIC_RUN_ID"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        store, *_ = next(rendezvous("env://"))
        # Not that RUN_ID, which torchrun calls "none": this store lasts as long as its job.
        return store, store.compare_set("siamusic-fast/job", "", uuid.uuid4().hex).decode()
    if one_machine.all_are_here():
        return one_machine.loopback_store(rank, world_size, int(os.environ["MASTER_PORT"])), ""
    store, *_ = next(rendezvous("env://"))
    return store, ""


def _device(index: int, on_gpu: bool) -> torch.device:
    if not on_gpu:
        return torch.device("cpu")
    # SLURM may show each task its own GPU only, which then is the first for all of them.
    device = torch.device("cuda", index % torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    return device


def _uses_gpus(gpus: int | None) -> bool:
    return gpus != 0 and torch.cuda.device_count() > 0


def _check_gpus(gpus: int | None) -> int:
    visible = torch.cuda.device_count()
    if gpus is None:
        return min(visible, 1)
    if gpus > 0 and visible == 0:
        raise DeviceError(
            f"gpus = {gpus} asks for a GPU and none is visible: use 0 for the CPU (on the command line "
            f"--gpus 0)."
        )
    if gpus > visible:
        raise DeviceError(
            f"gpus = {gpus} asks for more than the {visible} visible: use {visible} (on the command line "
            f"--gpus {visible})."
        )
    return gpus


def _failure(error: ChildFailedError) -> BaseException:
    """Return what ended a job: a request to stop, the user's mistake, a kill, or a traceback of ours."""
    rank, failure = error.get_first_failure()
    if failure.exitcode - 128 in STOPPING:
        return Stopped(failure.exitcode - 128)
    report: Any = failure.message
    if isinstance(report, dict):
        name, _, text = report["message"].partition(": ")
        for kind in (ConfigError, DataError, DeviceError, SiamusicError):
            if name == kind.__name__:
                return kind(text)
        return WorkerError(f"rank {rank} failed:\n{report['extraInfo']['py_callstack'].rstrip()}")
    if -failure.exitcode in _CRASHES:
        return SiamusicError(
            f"rank {rank} crashed in a library ({failure.signal_name()}): what it printed above may say why. "
            f"resume=True (on the command line --resume) goes on from the last checkpoint."
        )
    if failure.exitcode < 0:
        return SiamusicError(
            f"rank {rank} was ended by signal {-failure.exitcode} ({failure.signal_name()}) from outside: "
            f"see whether the memory sufficed. resume=True (on the command line --resume) goes on; "
            f"max_restarts (--max-restarts) does so by itself."
        )
    return WorkerError(f"rank {rank} ended with exit code {failure.exitcode} and no traceback.")
