"""Independent jobs on a pool of processes that end when they are told to, or when their parent is gone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import TypeVar

from siamusic_fast.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_SECONDS = 0.1
"""How often progress is reported."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job, Callable[[], None]], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_steps: Callable[[int], None],
) -> list[Result]:
    """Return `function(job, step)` of every job, in their order, computed by `workers` processes.

    `function` calls `step` after each step of its work; `on_steps` hears here how many there were. If a job
    fails, or on Ctrl-C, the others stop at their next step. Raises `DataError` if a worker dies.
    """
    # Spawned, not forked: the caller may have threads, and a spawned worker imports only what its job needs.
    context = multiprocessing.get_context("spawn")
    steps: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(steps, stop)
    )
    try:
        with pool:
            try:
                with _ctrl_c_held_back():  # the workers are started here
                    futures = [pool.submit(_run_job, function, job) for job in jobs]
                _follow(futures, steps, on_steps)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise DataError(
            f"a worker process died, perhaps for lack of memory: try again with fewer than {workers} workers."
        ) from None
    return [future.result() for future in futures]


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Deliver Ctrl-C after the context only, and never to a process started in it: its parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(
    futures: Sequence[Future[Result]], steps: "Synchronized[int]", on_steps: Callable[[int], None]
) -> None:
    """Report steps until all of `futures` are done; raise what the first one that fails raises."""
    reported = 0
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        total = steps.value
        if total > reported:
            on_steps(total - reported)
            reported = total


_steps: "Synchronized[int]"
_stop: Event


def _start_worker(steps: "Synchronized[int]", stop: Event) -> None:
    global _steps, _stop
    _steps, _stop = steps, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed, which cannot tell it any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_job(function: Callable[[Job, Callable[[], None]], Result], job: Job) -> Result:
    _stop_if_told()
    return function(job, _step)


def _step() -> None:
    with _steps.get_lock():
        _steps.value += 1
    _stop_if_told()


def _stop_if_told() -> None:
    if _stop.is_set():
        raise CancelledError
