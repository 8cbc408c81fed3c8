"""Independent jobs on a pool of processes, which end when they are told to or when their parent is gone."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, as_completed, wait
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from time import monotonic, sleep
from types import ModuleType
from typing import Any, Generic, TypeVar

from siamusic_fast.errors import DataError, SiamusicError
from siamusic_fast.processes.parent import children_end_with_this_process

Job = TypeVar("Job")
Counts = tuple[int, ...]
"""What a job has done: any quantities, in an order that `function` decides."""
Count = Callable[[Counts], None]

_POLL_SECONDS = 0.1
"""How often progress is reported."""
_SPAWNING = threading.Lock()
"""Held while processes start, which changes what all threads share."""
_GRACE_SECONDS = 1.0
"""Time that workers have to end after they were told to stop; then they are killed."""
_KEPT_SECONDS = 10.0
"""Time after which a process that a thread keeps ends if there is no job for it.

It gets none after half of that time: nobody could tell whether it is about to end.
"""


class WorkerDiedError(DataError):
    """A worker process ended by itself; the attributes say how, and in which job."""

    def __init__(self, how: str, procs: int, job: int | None = None, step: int = 0) -> None:
        remedy = f"use fewer than {procs} --procs" if procs > 1 else "close other programs"
        super().__init__(f"a worker process died ({how}): {remedy}; the same command goes on.")
        self.how = how
        self.job = job
        """Place of the job among all jobs; None if that is not known."""
        self.step = step
        """How often that job had called `count`."""
        self._procs = procs

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerDiedError, (self.how, self._procs, self.job, self.step)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores() -> int:
    """Return how many cores this process has for itself, if several on this machine train together.

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

    `function` calls `count` with `counters` numbers after each step of its work; `on_counts` gets their sums
    here, now and then. If a job fails, or on Ctrl-C, the others stop at their next step, or are killed if
    that takes longer than a second. Raises what the job raised, or `WorkerDiedError` if a worker dies.
    """
    workers: list[_Worker[Job]] = []
    try:
        with _starting_processes():
            workers.extend(_Worker(function) for _ in range(min(max(1, procs), len(jobs))))
        _run(workers, jobs, procs, [0] * counters, on_counts)
    finally:
        _end(workers)


def run_in_kept_process(
    function: Callable[[Job, Count], object], jobs: Sequence[Job], *, counters: int, on_counts: Count
) -> None:
    """Do the same as `run_in_processes` in one process, which this thread keeps for its next call.

    A process takes most of a second to start, and what a job has opened is open for the next one. It ends
    with the thread that has started it (on Linux), or after ten seconds without a job.
    """
    worker = _kept.workers.pop(function, None)
    # A worker that has no job says something only by ending.
    if worker and (monotonic() - worker.idle_since > _KEPT_SECONDS / 2 or worker.pipe.poll()):
        _end([worker])
        worker = None
    if worker is None:
        with _starting_processes():
            worker = _Worker(function, _KEPT_SECONDS)
    try:
        _run([worker], jobs, 1, [0] * counters, on_counts)
    except BaseException:
        _end([worker])
        raise
    worker.idle_since = monotonic()
    _kept.workers[function] = worker


@contextmanager
def _starting_processes() -> Iterator[None]:
    """Let this thread start processes in the context, which end with it."""
    with _SPAWNING, _ctrl_c_held_back(), _main_module_hidden(), children_end_with_this_process():
        yield


class _Worker(Generic[Job]):
    """A process that does one job after another, as its parent sees it.

    It waits `patience` seconds for a job, or as long as it takes.
    """

    def __init__(self, function: Callable[[Job, Count], object], patience: float | None = None) -> None:
        # Spawned, not forked: this process may have threads, and a worker imports only what its jobs need.
        context = multiprocessing.get_context("spawn")
        self.pipe, workers_end = context.Pipe()
        self.process = context.Process(target=_work, args=(function, workers_end, patience), daemon=True)
        self.process.start()
        workers_end.close()  # so that the pipe ends when the worker does
        self.job: int | None = None
        """Place of its job among all jobs."""
        self.step = 0
        """How often that job has called `count`."""
        self.idle_since = 0.0
        """When it ended its last job, by `monotonic`, if it is kept."""

    def start(self, place: int, job: Job) -> None:
        self.job, self.step = place, 0
        with suppress(OSError):  # that the worker died is for `receive` to find
            self.pipe.send(job)

    def receive(self, procs: int) -> Counts | Exception | None:
        """Return the next message of `_work`; raise the error of a worker, one of `procs`, that died."""
        try:
            message: Counts | Exception | None = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_GRACE_SECONDS)
            code = self.process.exitcode
            how = "killed, perhaps for lack of memory" if code == -signal.SIGKILL else f"exit code {code}"
            raise WorkerDiedError(how, procs, self.job, self.step) from None
        return message


class _Kept(threading.local):
    """The processes that each thread keeps, by the function that they call."""

    def __init__(self) -> None:
        self.workers: dict[Callable[..., object], _Worker[Any]] = {}


_kept = _Kept()


def _run(
    workers: Sequence[_Worker[Job]], jobs: Sequence[Job], procs: int, totals: list[int], on_counts: Count
) -> None:
    """Give jobs to `workers` until all are done, and report `totals`; raise what a job raises."""
    waiting = iter(enumerate(jobs))
    for worker, (place, job) in zip(workers, waiting, strict=False):
        worker.start(place, job)
    busy: dict[Any, _Worker[Job]] = {worker.pipe: worker for worker in workers}
    report_at = 0.0
    while busy:
        for pipe in wait_for_any(list(busy), _POLL_SECONDS):
            worker = busy[pipe]
            message = worker.receive(procs)
            if isinstance(message, Exception):
                raise message
            if message is not None:
                worker.step += 1
                totals = add_counts(totals, message)
            elif (following := next(waiting, None)) is not None:
                worker.start(*following)
            else:
                del busy[pipe]
        if not busy or monotonic() >= report_at:
            on_counts(tuple(totals))
            report_at = monotonic() + _POLL_SECONDS


def _end(workers: Sequence[_Worker[Job]]) -> None:
    """Let `workers` end at their next step, and kill those that take too long."""
    for worker in workers:
        worker.pipe.close()
    deadline = monotonic() + _GRACE_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - monotonic()))
        worker.process.kill()
        worker.process.join()


def _work(
    function: Callable[[Job, Count], object], pipe: "Connection[Any, Any]", patience: float | None
) -> None:
    """Be a worker: get jobs; send counts after each step, and after each job None or the error it raised."""
    end_with_parent()

    def count(counts: Counts) -> None:
        try:
            pipe.send(counts)
        except OSError:  # the parent has closed the pipe
            raise CancelledError from None

    with suppress(EOFError, OSError):
        while pipe.poll(patience):
            job = pipe.recv()
            failure = None
            try:
                function(job, count)
            except Exception as error:
                failure = error
                if not isinstance(error, SiamusicError | OSError):
                    error.add_note(traceback.format_exc())
            pipe.send(failure)


def end_with_parent(grace_seconds: float = 0.0) -> None:
    """Have this process end when its parent is killed, which cannot tell it any more.

    It then has `grace_seconds` to end by itself, and none if the parent is gone before this call.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():
        os._exit(1)

    def watch() -> None:
        parent.join()
        sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Let processes that start in the context import what their jobs need, and not the program that runs.

    It may take seconds to import, or be a script that would start its work again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Deliver Ctrl-C after the context only, and never to a process started in it: its parent decides."""
    resource_tracker.ensure_running()  # which unblocks SIGINT when it starts
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
            totals = add_counts(totals, future.result())
            on_counts(tuple(totals))
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _run_alone(function: Callable[[Job, Count], object], job: Job, counters: int) -> list[int]:
    totals = [0] * counters

    def count(counts: Counts) -> None:
        totals[:] = add_counts(totals, counts)

    function(job, count)
    return totals


def add_counts(totals: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Return the sums of two rows of numbers."""
    return [total + more for total, more in zip(totals, counts, strict=True)]
