"""Independent jobs on a pool of processes that end when they are told to, or when their parent is gone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Array
from multiprocessing.synchronize import Event
from time import monotonic, sleep
from typing import Any, TypeVar

from siamusic_fast.errors import DataError

Job = TypeVar("Job")
Counts = tuple[int, ...]
"""What a job has done: any quantities, in an order that `function` decides."""
Count = Callable[[Counts], None]

_POLL_SECONDS = 0.1
"""How often progress is reported."""
_GRACE_SECONDS = 1.0
"""How long workers may go on with what they are at after they were told to stop; then they are killed."""


class WorkerDiedError(DataError):
    """A worker process that ended by itself, and what it was at."""

    def __init__(self, how: str, procs: int, job: int | None = None, step: int = 0) -> None:
        remedy = f"use fewer than {procs} --procs" if procs > 1 else "close other programs"
        super().__init__(f"a worker process died ({how}): {remedy}; the same command goes on.")
        self.how = how
        self.job = job
        """Place of the job among all jobs; None if that is not known."""
        self.step = step
        """How often that job had called `count`."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores() -> int:
    """Return how many cores are this process's: all that it may use, shared with its job on this machine.

    srun may have given each process cores of its own; torch's launcher never does.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if own and cores() < (os.cpu_count() or 1):
        return cores()
    return max(1, cores() // processes)


def run_in_processes(
    function: Callable[[Job, Count], object],
    jobs: Sequence[Job],
    *,
    procs: int,
    counters: int,
    on_counts: Count,
) -> None:
    """Call `function(job, count)` for every job in `procs` processes; what it returns is not kept.

    `function` calls `count` with `counters` numbers after each step of its work; `on_counts` hears here, now
    and then, what they add up to. If a job fails, or on Ctrl-C, the others stop at their next step, or are
    killed if that takes longer than a second. Raises `WorkerDiedError` if a worker dies.
    """
    # Spawned, not forked: the caller may have threads, and a spawned worker imports only what its job needs.
    context = multiprocessing.get_context("spawn")
    shared = _Shared(
        totals=Array("q", counters, ctx=context),
        procs=Array("q", len(jobs), ctx=context, lock=False),
        steps=Array("q", len(jobs), ctx=context, lock=False),
        stop=context.Event(),
    )
    pool = ProcessPoolExecutor(
        max(1, min(procs, len(jobs))),
        mp_context=context,
        initializer=_start_worker,
        initargs=(shared,),
    )
    not_ours = set(multiprocessing.active_children())
    with pool:
        try:
            with _ctrl_c_held_back():  # the workers are started here
                futures = [pool.submit(_run_job, function, place, job) for place, job in enumerate(jobs)]
                children = [child for child in multiprocessing.active_children() if child not in not_ours]
            _follow(futures, children, shared.totals, on_counts)
        except BaseException as error:
            died = _died(children, shared, procs) if isinstance(error, BrokenProcessPool) else None
            shared.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _end_soon(children)
            if died:
                raise died from None
            raise


def run_in_executor(
    function: Callable[[Job, Count], object],
    jobs: Sequence[Job],
    executor: Executor,
    *,
    counters: int,
    on_counts: Count,
) -> None:
    """Do the same as `run_in_processes` on any executor, which stays open; counts come in by whole jobs.

    If a job fails, or on Ctrl-C, jobs that run are waited for, as an executor cannot stop them.
    """
    futures = [executor.submit(_run_alone, function, job, counters) for job in jobs]
    totals = [0] * counters
    try:
        for future in as_completed(futures):
            totals = [total + more for total, more in zip(totals, future.result(), strict=True)]
            on_counts(tuple(totals))
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _run_alone(function: Callable[[Job, Count], object], job: Job, counters: int) -> Counts:
    totals = [0] * counters

    def count(counts: Counts) -> None:
        totals[:] = (total + more for total, more in zip(totals, counts, strict=True))

    function(job, count)
    return tuple(totals)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Deliver Ctrl-C after the context only, and never to a process started in it: its parent decides."""
    held = threading.Event()
    # The mask is for the processes: it does not keep a thread of numpy's from taking the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is not None and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, lambda number, frame: held.set())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours:
            signal.signal(signal.SIGINT, handler)
        if held.is_set():
            signal.raise_signal(signal.SIGINT)


def _follow(
    futures: Sequence[Future[None]], children: Sequence[BaseProcess], totals: Any, on_counts: Count
) -> None:
    """Report counts until all of `futures` are done; raise what the first one that fails raises.

    The pool itself may overlook the end of a worker that it started while it was waiting already.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if any(child.exitcode for child in children):
            raise BrokenProcessPool
        on_counts(tuple(totals))


def _died(children: Sequence[BaseProcess], shared: "_Shared", procs: int) -> WorkerDiedError:
    """Return the error that says which of `children` died by itself; the others are ended by SIGTERM."""
    deadline = monotonic() + _GRACE_SECONDS
    while monotonic() < deadline:
        for child in children:
            if child.exitcode not in (None, 0, -signal.SIGTERM):
                jobs = [place for place, worker in enumerate(shared.procs) if worker == child.pid]
                steps = shared.steps[jobs[0]] if jobs else 0
                return WorkerDiedError(_how(child.exitcode), procs, jobs[0] if jobs else None, steps)
        sleep(_POLL_SECONDS / 10)
    return WorkerDiedError("perhaps for lack of memory", procs)


def _how(exit_code: int | None) -> str:
    """Return what `exit_code` says of the end of a process."""
    if exit_code == -signal.SIGKILL:
        return "killed, perhaps for lack of memory"
    return f"exit code {exit_code}"


def _end_soon(children: Sequence[BaseProcess]) -> None:
    """Wait for `children` to end, and kill those that take too long."""
    deadline = monotonic() + _GRACE_SECONDS
    for child in children:
        wait_for_any([child.sentinel], max(0.0, deadline - monotonic()))
    for child in children:
        child.kill()


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What workers and their parent share."""

    totals: Any
    """What all jobs have counted so far."""
    procs: Any
    """Of each job that is being done, the process that does it; 0 before and after."""
    steps: Any
    """How often each job has counted."""
    stop: Event
    """Tells workers to end."""


_shared: _Shared


def _start_worker(shared: _Shared) -> None:
    global _shared
    _shared = shared
    end_with_parent()


def end_with_parent(grace_seconds: float = 0.0) -> None:
    """See to it that this process ends when its parent is killed, which cannot tell it any more.

    It then has `grace_seconds` to end by itself, and none if the parent is gone before this call.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():
        os._exit(1)
    threading.Thread(target=_outlive, args=(parent, grace_seconds), daemon=True).start()


def _outlive(parent: BaseProcess, seconds: float) -> None:
    parent.join()
    sleep(seconds)
    os._exit(1)


def _run_job(function: Callable[[Job, Count], object], place: int, job: Job) -> None:
    _stop_if_told()
    _shared.procs[place] = os.getpid()

    def count(counts: Counts) -> None:
        _shared.steps[place] += 1
        with _shared.totals.get_lock():
            for counter, more in enumerate(counts):
                if more:
                    _shared.totals[counter] += more
        _stop_if_told()

    function(job, count)
    _shared.procs[place] = 0


def _stop_if_told() -> None:
    if _shared.stop.is_set():
        raise CancelledError
