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
    workers: int,
    counters: int,
    on_counts: Count,
) -> None:
    """Call `function(job, count)` for every job in `workers` processes; what it returns is not kept.

    `function` calls `count` with `counters` numbers after each step of its work; `on_counts` hears here, now
    and then, what they add up to. If a job fails, or on Ctrl-C, the others stop at their next step, or are
    killed if that takes longer than a second. Raises `DataError` if a worker dies.
    """
    # Spawned, not forked: the caller may have threads, and a spawned worker imports only what its job needs.
    context = multiprocessing.get_context("spawn")
    totals = Array("q", counters, ctx=context)
    stop = context.Event()
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(jobs))),
        mp_context=context,
        initializer=_start_worker,
        initargs=(totals, stop),
    )
    not_ours = set(multiprocessing.active_children())
    try:
        with pool:
            try:
                with _ctrl_c_held_back():  # the workers are started here
                    futures = [pool.submit(_run_job, function, job) for job in jobs]
                _follow(futures, totals, on_counts)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                _end_soon([child for child in multiprocessing.active_children() if child not in not_ours])
                raise
    except BrokenProcessPool:
        raise DataError(
            f"a worker process died, perhaps for lack of memory: the same command with fewer than {workers} "
            f"--workers goes on."
        ) from None


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


def _follow(futures: Sequence[Future[None]], totals: Any, on_counts: Count) -> None:
    """Report counts until all of `futures` are done; raise what the first one that fails raises."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        on_counts(tuple(totals))


def _end_soon(children: Sequence[BaseProcess]) -> None:
    """Wait for `children` to end, and kill those that take too long."""
    deadline = monotonic() + _GRACE_SECONDS
    for child in children:
        wait_for_any([child.sentinel], max(0.0, deadline - monotonic()))
    for child in children:
        child.kill()


_totals: Any
_stop: Event


def _start_worker(totals: Any, stop: Event) -> None:
    global _totals, _stop
    _totals, _stop = totals, stop
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


def _run_job(function: Callable[[Job, Count], object], job: Job) -> None:
    _stop_if_told()
    function(job, _count)


def _count(counts: Counts) -> None:
    with _totals.get_lock():
        for place, more in enumerate(counts):
            if more:
                _totals[place] += more
    _stop_if_told()


def _stop_if_told() -> None:
    if _stop.is_set():
        raise CancelledError
