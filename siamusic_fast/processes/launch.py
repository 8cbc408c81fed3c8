"""Starting processes that train together, or joining those that torchrun or SLURM started."""

import dataclasses
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
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
from siamusic_fast.processes import loopback
from siamusic_fast.processes.environment import (
    TIMEOUT,
    check_gpus,
    launched_environment,
    on_one_machine,
    processes_wanted,
    visible_gpus,
)
from siamusic_fast.processes.failures import (
    OF_PRETRAINING,
    Remedy,
    UnreachableError,
    WorkerError,
    error_from_words,
    error_to_words,
    os_error_message,
)
from siamusic_fast.processes.parent import children_end_with_this_process
from siamusic_fast.processes.pool import end_with_parent, share_of_cores
from siamusic_fast.processes.rendezvous import torchrun_store
from siamusic_fast.processes.signals import STOPPING, Stopped, StopSignals
from siamusic_fast.processes.world import World

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

_HANDLED_BY_LAUNCHER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_FAIL_AFTER = 5.0
"""Seconds that a process waits before it fails because another has died, whose error is to be shown."""
_SAVE_WITHIN = 8.0
"""Seconds in which a process saves and ends when its launcher was killed; torch then sends it a SIGINT."""
_ENDED_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says when another process has ended."""
_WAITED_IN_VAIN = ("timed out waiting", "wait timeout", "timed out after")
"""What gloo, a store and its socket say, in lower case."""


class WorldFunction(Protocol[R_co]):
    """What the processes run. It can be pickled, as a `functools.partial` of a function in a module can."""

    def __call__(self, *, world: World) -> R_co: ...


def launch(
    function: WorldFunction[T],
    *,
    gpus: int | None = None,
    procs: int | None = None,
    max_restarts: int = 0,
    timeout: float = TIMEOUT,
    remedy: Remedy = OF_PRETRAINING,
) -> T:
    """Call `function(world=...)` in every process and return the leading one's result.

    With `gpus`, each of so many GPUs has a process; `None` is one GPU if there is one, else the CPU. On the
    CPU (`gpus=0`) there are `procs` processes. A single process is this one. Several are started on this
    machine by torch's elastic launcher, and import the main module of the calling program. Under `torchrun`,
    and in a step of SLURM's `srun`, this process is one of several already and joins the others.

    If a process dies, does not answer for `timeout` seconds, or fails by what is not the user's mistake, all
    processes start again, at most `max_restarts` times. After that, and for a user's mistake at once, this
    raises: the SiamusicError that a process raised; a SiamusicError if a process was killed, did not answer,
    could not use a file, or ran out of the GPU's memory; WorkerError if it failed in another way; Stopped
    after a request to stop. No process is left. `remedy` says what an error recommends.
    """
    processes = processes_wanted(gpus, procs)
    on_gpu = gpus != 0 and visible_gpus() > 0
    if environment := launched_environment():
        if max_restarts:
            raise ConfigError(
                f"max_restarts = {max_restarts} is not for processes that torchrun or SLURM started: leave "
                f"it out (on the command line --max-restarts), and give torchrun its own --max-restarts, or "
                f"sbatch --requeue."
            )
        os.environ.update(environment)
        return _join(function, on_gpu, timeout, remedy)
    if processes == 1 and max_restarts == 0:
        return _call(function, World(device=_device(0, on_gpu)))
    return _start(function, processes, on_gpu, max_restarts, timeout, remedy)


def device_for(gpus: int | None) -> torch.device:
    """Return the device of work that one process does; `gpus` is 0, 1, or `None`: a GPU if there is one."""
    found = check_gpus(gpus)
    if found > 1:
        raise ConfigError(f"gpus = {found} is too many, one is used: give 1 (on the command line --gpus 1).")
    return _device(0, on_gpu=found > 0)


def _call(function: WorldFunction[T], world: World) -> T:
    """Call `function`; raise a DeviceError that says what to do if the GPU's memory does not suffice."""
    try:
        return function(world=world)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the GPU's memory does not suffice ({str(error).splitlines()[0]}): use a smaller batch_size, in "
            f"pre-training with a larger grad_accum_steps for as many pairs per step (on the command line "
            f"--batch-size and --grad-accum-steps)."
        ) from error


def _start(
    function: WorldFunction[T],
    processes: int,
    on_gpu: bool,
    max_restarts: int,
    timeout: float,
    remedy: Remedy,
) -> T:
    """Start processes with torch's launcher and return the result of the first."""
    # The launcher logs a failure in a dozen lines of its own; what is raised below says it all.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    with (
        _signal_handlers_kept(),
        StopSignals() as signals,
        signals.at_once(),
        loopback.private_folder() as folder,
        children_end_with_this_process(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend=loopback.RENDEZVOUS,
            rdzv_configs={"folder": folder},
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        try:
            run = elastic_launch(config, _run_started)
            results: dict[int, T] = run(function, on_gpu, timeout, remedy, folder)
        except SignalException as error:
            raise Stopped(error.sigval) from None
        except ChildFailedError as error:
            raise _failure(error, remedy) from None
    return results[0]


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces."""
    before = {number: signal.getsignal(number) for number in _HANDLED_BY_LAUNCHER}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _run_started(function: WorldFunction[T], on_gpu: bool, timeout: float, remedy: Remedy, folder: Path) -> T:
    """Be a process that the launcher started; stopped, end in a way that it does not take for success."""
    end_with_parent(_SAVE_WITHIN)
    tempfile.tempdir = str(folder)  # what libraries leave there, such as DALI, goes with the folder
    try:
        return _join(function, on_gpu, timeout, remedy, folder)
    except SiamusicError as error:
        if not isinstance(error, UnreachableError):
            loopback.prevent_restart(folder, error)
        # The launcher reports the name of the class only, and knows those of `errors` alone.
        raise error_from_words(*error_to_words(error)) from error
    except OSError as error:
        raise DataError(os_error_message(error)) from error
    except KeyboardInterrupt as stop:
        raise SystemExit(stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT) from None


def _join(
    function: WorldFunction[T], on_gpu: bool, timeout: float, remedy: Remedy, folder: Path | None = None
) -> T:
    """Be the process that the environment variables of torch's launcher describe.

    `folder` is the private one of `_start`.
    """
    try:
        with _process_group(on_gpu, timedelta(seconds=timeout), folder) as world:
            return _call(function, world)
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _WAITED_IN_VAIN):
            raise UnreachableError(_waited_in_vain(timeout, remedy)) from error
        if any(words in str(error) for words in _ENDED_CONNECTION):
            time.sleep(_FAIL_AFTER)
            raise UnreachableError(
                f"{_who()} lost another process, which has ended: what that one printed says why. "
                f"{remedy.go_on}."
            ) from error
        raise


@contextmanager
def _process_group(on_gpu: bool, timeout: timedelta, folder: Path | None) -> Iterator[World]:
    device = _device(int(os.environ["LOCAL_RANK"]), on_gpu)
    torch.set_num_threads(share_of_cores())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if on_one_machine():
        loopback.keep_to_loopback()
    store, job_id = _store(folder, rank, world_size, timeout)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=device if on_gpu else None,
        timeout=timeout,
    )
    world = World(
        rank=rank,
        world_size=world_size,
        device=device,
        id=job_id,
        cpu_group=dist.new_group(backend="gloo", timeout=timeout) if on_gpu else None,
        timeout=timeout.total_seconds(),
    )
    # A node of torchrun counts the failures of its own processes only.
    (restarts,) = world.max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    yield dataclasses.replace(world, restarts=restarts)
    # Not after an error: the others would have to take part, and the launcher ends them anyway.
    dist.destroy_process_group()


def _store(folder: Path | None, rank: int, world_size: int, timeout: timedelta) -> tuple[Store, str]:
    """Return the store through which the processes find each other, and `World.id`."""
    if folder:
        return loopback.file_store(folder), os.environ["TORCHELASTIC_RUN_ID"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return torchrun_store(rank, world_size, timeout)
    if on_one_machine():
        return loopback.loopback_store(rank, world_size, int(os.environ["MASTER_PORT"]), timeout), ""
    store, *_ = next(rendezvous("env://", timeout=timeout))
    return store, ""


def _who() -> str:
    return f"rank {os.environ['RANK']} on {socket.gethostname()}"


def _waited_in_vain(timeout: float, remedy: Remedy) -> str:
    network = "" if on_one_machine() else ", its machine is down, or the network is cut"
    longer = f"; if it was only slow, give a longer timeout (--timeout {2 * timeout:g})"
    return (
        f"{_who()} waited {timeout:g} s for another process in vain: it hangs{network}. "
        f"{remedy.go_on}{longer if remedy.timeout else ''}."
    )


def _device(index: int, on_gpu: bool) -> torch.device:
    if not on_gpu:
        return torch.device("cpu")
    # SLURM may show each task its own GPU only, which then is the first for all of them.
    device = torch.device("cuda", index % torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    return device


def _failure(error: ChildFailedError, remedy: Remedy) -> BaseException:
    """Return what ended the processes: a request to stop, the user's mistake, a kill, or a bug of ours."""
    rank, failure = error.get_first_failure()
    if failure.exitcode - 128 in STOPPING:
        return Stopped(failure.exitcode - 128)
    report: Any = failure.message
    if isinstance(report, dict):
        name, _, text = report["message"].partition(": ")
        raised = error_from_words(name, text)
        if isinstance(raised, SiamusicError):
            return raised
        return WorkerError(f"rank {rank} failed:\n{report['extraInfo']['py_callstack'].rstrip()}")
    if failure.exitcode < 0:
        by_itself = "; max_restarts (--max-restarts) does so by itself" if remedy.restarts else ""
        return SiamusicError(
            f"rank {rank} was ended by signal {-failure.exitcode} ({failure.signal_name()}): the memory may "
            f"not suffice, or a library crashed and printed why above. {remedy.go_on}{by_itself}."
        )
    return WorkerError(f"rank {rank} ended with exit code {failure.exitcode} and no traceback.")
