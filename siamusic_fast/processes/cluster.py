"""Independent jobs on the workers of a Dask cluster, with the promises of the pool of processes."""

import asyncio
import functools
import itertools
import logging
import math
import pickle
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

import siamusic_fast
from siamusic_fast.errors import ConfigError, DataError, SiamusicError, not_installed
from siamusic_fast.processes.pool import Count, Counts, WorkerDiedError, add_counts, cores

Job = TypeVar("Job")
Result = TypeVar("Result")

_ADDRESS = re.compile(r"(tcp|tls)://[^\s/]+:\d+")
_CONNECT_SECONDS = 10
"""Time that a scheduler has to answer."""
_WORKERS_SECONDS = 60
"""Time that a scheduler may be without workers before that is said."""
_ANSWER_SECONDS = 60
"""Time that a scheduler has to answer once it is at work."""
_POLL_SECONDS = 0.1
_REPORTS_PER_SECOND = 500
"""Most reports of progress that all workers together send to the scheduler."""
_ASKED_EVERY = 2.0
"""Seconds between two questions to the scheduler how many workers there are."""
_LOCAL_SETTINGS = {
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
}
"""What a scheduler in this process leaves out: it watched its threads for 3 % of a core."""
_DASHBOARD_PORT = 8787
_VERSION = "__import__('siamusic_fast').__version__"
"""What a worker evaluates first: if it has another siamusic-fast, or none, it may lack our functions."""


class Shared(Hashable, Protocol):
    """What a worker must have in common with the process that it works for; goes to the worker."""

    def check(self) -> str:
        """Raise `DataError` on a worker that lacks it; return what `confirm` wants to know."""

    def confirm(self, host: str, said: str) -> None:
        """Raise `DataError`, here, unless what a worker on `host` did in `check` has come here."""


def not_shared(host: str, what: str) -> DataError:
    """Return the error of a worker on `host`; `what` says what it does not see or cannot do."""
    return DataError(
        f"the worker on {host} {what}: all workers and this machine ({socket.gethostname()}) must see the "
        f"audio and the shards under the same paths, on a file system that they share."
    )


@contextmanager
def open_cluster(scheduler: str, procs: int | None = None) -> Iterator["Cluster"]:
    """Connect to the Dask cluster that `scheduler` names, for as long as the context is open.

    `scheduler` is the address of a scheduler, such as tcp://node1:8786, or tls:// with the certificates of
    Dask's settings; its workers are those that have connected to it. "local" is a scheduler in this process,
    which does `procs` jobs at a time, by default one per core. "slurm" asks SLURM for jobs with `procs` cores
    together, as dask-jobqueue's settings file says, and ends them with the context.

    Raises `ConfigError` for anything else, if Dask is not installed, if the scheduler does not answer or has
    no workers, or if SLURM cannot be asked.
    """
    _check_words(scheduler, procs)
    try:
        import distributed
    except ImportError:
        raise not_installed("distributed", "cluster", ", or leave --scheduler out") from None
    if scheduler.startswith("tls:"):
        _check_certificates(scheduler)
    # What it logs of lost connections is said in our words.
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.callback(log.setLevel, level)
        address: Any = scheduler
        if scheduler in ("local", "slurm"):
            made = _local_cluster(procs or cores()) if scheduler == "local" else _slurm_cluster(procs or 1)
            address = stack.enter_context(made)
        try:
            client = distributed.Client(  # type: ignore[no-untyped-call]
                address, timeout=_CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, TimeoutError):
            sharing = ", that both have certificates of one authority" if scheduler.startswith("tls:") else ""
            raise ConfigError(
                f"no Dask scheduler answers at {scheduler} within {_CONNECT_SECONDS} s: check the address, "
                f"that `dask scheduler` runs there{sharing}, and that no firewall is between."
            ) from None
        yield Cluster(stack.enter_context(client), scheduler)


def _check_words(scheduler: str, procs: int | None) -> None:
    if scheduler in ("local", "slurm"):
        if scheduler == "slurm" and procs is None:
            raise ConfigError("--scheduler slurm needs --procs N: the number of cores to ask SLURM for.")
        return
    if not _ADDRESS.fullmatch(scheduler):
        raise ConfigError(
            f"--scheduler {scheduler} is neither local, nor slurm, nor an address: give one such as "
            f"tcp://node1:8786, which `dask scheduler` prints when it starts."
        )
    if procs is not None:
        raise ConfigError(
            f"--procs {procs} does not go with --scheduler {scheduler}: its workers decide, "
            f"by `dask worker --nthreads`."
        )


def _local_cluster(procs: int) -> Any:
    """Return a scheduler and a worker with `procs` threads in this process; jobs start their own."""
    import dask
    from distributed import LocalCluster

    with dask.config.set(_LOCAL_SETTINGS):
        return LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=1,
            threads_per_worker=procs,
            processes=False,  # so that nothing listens that runs code for other users of the machine
            dashboard_address=f"127.0.0.1:{_dashboard_port()}",
        )


def _dashboard_port() -> int:
    """Return the port on which people expect the dashboard, or 0 for any if it is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", _DASHBOARD_PORT))
        except OSError:
            return 0
    return _DASHBOARD_PORT


def _slurm_cluster(procs: int) -> Any:
    if not shutil.which("sbatch"):
        raise ConfigError("--scheduler slurm: there is no sbatch here: start this on a login node of SLURM.")
    try:
        import dask
        from dask_jobqueue.slurm import SLURMCluster, SLURMJob
        from distributed.deploy.spec import ProcessInterface
    except ImportError:
        raise not_installed("dask_jobqueue", "cluster") from None
    refusals: list[str] = []

    class Submitted(SLURMJob):
        """A job of SLURM that tells what sbatch said against it, and then counts as one that has started.

        A cluster whose jobs have not started cannot be closed.
        """

        async def start(self) -> None:
            try:
                await super().start()  # type: ignore[no-untyped-call]
            except (OSError, RuntimeError, ValueError) as error:
                refusals.append(str(error).rpartition("stderr:")[2])
                await ProcessInterface.start(self)  # type: ignore[no-untyped-call]

    try:
        cluster = SLURMCluster(job_cls=Submitted)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(
            f"--scheduler slurm: {' '.join(str(error).split())}: write cores, memory, queue and walltime of "
            f"a job under jobqueue: slurm: in ~/.config/dask/jobqueue.yaml, see docs/scaling.md."
        ) from None
    cores_of_job = dask.config.get("jobqueue.slurm.cores")  # which scale(cores=procs) looks for elsewhere
    cluster.scale(jobs=math.ceil(procs / cores_of_job))  # type: ignore[no-untyped-call]
    cluster.sync(cluster._correct_state)  # type: ignore[no-untyped-call] # which returns when all are submitted
    if refusals:
        cluster.close()
        raise ConfigError(
            f"--scheduler slurm: sbatch refused {len(refusals)} jobs ({' '.join(refusals[0].split())}): mend "
            f"what ~/.config/dask/jobqueue.yaml says of them, see docs/scaling.md."
        )
    return cluster


def _check_certificates(scheduler: str) -> None:
    """Raise `ConfigError` if the settings of Dask have none that can be read."""
    from distributed.security import Security

    why: object = "none are set"
    try:
        arguments = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
        if arguments.get("ssl_context") is not None:
            return
    except OSError as error:
        why = error
    raise ConfigError(
        f"--scheduler {scheduler} needs certificates ({why}): set distributed.comm.tls.ca-file and, below "
        f"client, key and cert, see docs/scaling.md."
    )


_Report = tuple[int, Counts]
"""Place of a job, and what it has done since its start."""
_Future: TypeAlias = "Future[tuple[Result, Counts]]"
"""Gives the result of a job and its last counts."""


class Cluster:
    """The workers of a Dask scheduler."""

    def __init__(self, client: Any, scheduler: str) -> None:
        self._client = client
        self._name = scheduler
        self._threads, self._asked_at, self._seen_at = 0, 0.0, time.monotonic()

    @property
    def dashboard(self) -> str:
        """Address of the page on which Dask shows what its workers do."""
        link = str(self._client.dashboard_link)
        # Of a scheduler in this process, it is the address of the machine, on which nothing listens.
        return re.sub(r"//.*:", "//127.0.0.1:", link) if self._name == "local" else link

    def run(
        self,
        function: Callable[[Job, Count], Result],
        jobs: Iterable[Job],
        *,
        names: Sequence[str],
        shared: Shared,
        counters: int,
        on_counts: Count,
        on_result: Callable[[int, Result], None],
    ) -> None:
        """Call `function(job, report)` for every job on some worker; `on_result` gets its place and result.

        A job is taken from `jobs` when it is sent.
        `function` calls `report` with `counters` numbers, what it has done since its start; `on_counts` gets
        the sums over all jobs here, now and then. A job whose worker goes away is done again by another. The
        dashboard shows each job under its name in `names`. Only so many jobs are at the scheduler that all
        workers stay busy.

        Raises what a job raises, and `DataError` if a worker lacks what is `shared`, if workers die at one
        job time and again, or if the scheduler goes away. Then, and on Ctrl-C, jobs that wait are canceled;
        those that run end as their `function` decides.
        """
        self._wait_for_workers()
        token = uuid.uuid4().hex[:8]
        self._check_workers(shared, token)
        topic = f"siamusic-fast-{token}"
        inbox: SimpleQueue[_Report | _Future[Result]] = SimpleQueue()
        waiting, left = enumerate(zip(names, jobs, strict=True)), len(names)
        running: dict[_Future[Result], int] = {}
        totals, current = [0] * counters, dict[int, Counts]()
        executor = self._client.get_executor(pure=False)
        work = pickle.dumps((function, shared, token))
        self._client.subscribe_topic(topic, lambda event: inbox.put(event[1]))
        try:
            while left or running:
                threads = self._count_threads()
                for place, (name, job) in itertools.islice(waiting, max(0, 2 * threads - len(running))):
                    left -= 1
                    every = max(_POLL_SECONDS, threads / _REPORTS_PER_SECOND)
                    task = functools.partial(_work, work, topic, place, every, counters)
                    # Another run on this scheduler may have jobs of the same names.
                    future = executor.submit(task, pickle.dumps(job), key=f"{name}-{token}")
                    running[future], current[place] = place, ()
                    future.add_done_callback(inbox.put)
                for message in _received(inbox):
                    if isinstance(message, Future):
                        place = running.pop(message)
                        result, counts = self._result(message, names[place])
                        totals = add_counts(totals, counts)
                        del current[place]
                        on_result(place, result)
                    elif message[0] in current:
                        current[message[0]] = message[1]
                sums = totals
                for counts in filter(None, current.values()):
                    sums = add_counts(sums, counts)
                on_counts(tuple(sums))
        finally:
            for future in running:
                future.cancel()
            self._client.unsubscribe_topic(topic)

    def _wait_for_workers(self) -> None:
        """Return when there is a worker; of SLURM that may take as long as its queue."""
        while True:
            try:
                self._client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
                return
            except TimeoutError:
                if self._name != "slurm":
                    raise ConfigError(
                        f"the scheduler at {self._name} has had no worker for {_WORKERS_SECONDS} s: start "
                        f"`dask worker {self._name}` on machines that see the audio and the shards."
                    ) from None
                warnings.warn("no job of SLURM is at work yet: squeue --me says why", stacklevel=2)

    def _check_workers(self, shared: Shared, run: str) -> None:
        """Have every worker that is there check what is `shared`; others check it before their first job."""
        ours = siamusic_fast.__version__
        for address, version in self._ask_all(eval, _VERSION):
            if isinstance(version, OSError):  # the worker has gone; one that comes back checks its first job
                continue
            if version != ours:
                has = f"siamusic-fast {version}"
                if isinstance(version, ImportError):
                    has = "no siamusic-fast that can be imported"
                elif isinstance(version, Exception):
                    has = f"a siamusic-fast that failed ({version!r})"
                raise DataError(
                    f"the worker at {address} has {has}, not siamusic-fast {ours}, so that bytes could "
                    f"differ: give it the environment of this machine."
                )
        for address, said in self._ask_all(_check_in_thread, pickle.dumps((shared, run))):
            if isinstance(said, SiamusicError):
                raise said
            if isinstance(said, OSError):
                continue
            if isinstance(said, Exception):
                raise DataError(f"the worker at {address} failed: {said!r}.")
            shared.confirm(*said)

    def _ask_all(self, function: Callable[..., Any], argument: Any) -> list[tuple[str, Any]]:
        return sorted(self._client.run(function, argument, on_error="return").items())

    def _count_threads(self) -> int:
        """Return how many jobs all workers do at a time; warn if there has been none for long."""
        now = time.monotonic()
        if now - self._asked_at < _ASKED_EVERY:
            return self._threads
        try:
            ask = self._client.scheduler.ncores
            self._threads = sum(self._client.sync(ask, callback_timeout=_ANSWER_SECONDS).values())
        except (OSError, TimeoutError):
            raise self._gone() from None
        self._asked_at = now
        if self._threads:
            self._seen_at = now
        elif now - self._seen_at > _WORKERS_SECONDS:
            self._seen_at = now
            without = f"the scheduler at {self._name} has had no worker for {_WORKERS_SECONDS} s"
            remedy = "start one, and the work goes on"
            if self._name == "slurm":
                remedy = "if squeue --me shows no job that waits, press Ctrl-C, and the same command goes on"
            warnings.warn(f"{without}: {remedy}", stacklevel=2)
        return self._threads

    def _result(self, future: "_Future[Result]", name: str) -> tuple[Result, Counts]:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise DataError(
                f"{error.allowed_failures + 1} workers died one after the other while they did {name}, the "
                f"last one at {error.last_worker.address}: see their logs; mostly they have too little "
                f"memory for their threads. The same command goes on."
            ) from None
        except (CancelledError, OSError) as error:
            if isinstance(error, CancelledError) or self._client.status != "running":
                raise self._gone() from None
            raise
        except (ImportError, AttributeError) as error:
            raise DataError(
                f"a worker cannot do {name} ({error}): give all workers the environment of this machine."
            ) from None

    def _gone(self) -> DataError:
        return DataError(
            f"the scheduler at {self._name} went away: start it again, and the same command goes on."
        )


@functools.lru_cache
def _check(shared: Shared, run: str) -> tuple[str, str]:
    """Return the name of the host of this worker, and what `shared.check` says there, once for each `run`."""
    return socket.gethostname(), shared.check()


async def _check_in_thread(shared: bytes) -> tuple[str, str]:
    """Return what `_check` does; to unpickle `shared` may import torch, which would hold up the worker."""
    return await asyncio.to_thread(lambda: _check(*pickle.loads(shared)))


def _received(inbox: "SimpleQueue[Any]") -> Iterator[Any]:
    """Yield what has come in, and wait a little if there is nothing."""
    with suppress(Empty):
        yield inbox.get(timeout=_POLL_SECONDS)
        while True:
            yield inbox.get_nowait()


def _work(
    work: bytes, topic: str, place: int, every: float, counters: int, job: bytes
) -> tuple[object, Counts]:
    """Do a job on a worker, and report every so many seconds; return its result and its last counts.

    `work` has the function and what is shared. It and `job` are pickled, as the scheduler looks into what it
    passes on, and would import what they need.
    """
    from distributed import get_worker

    function, shared, run = pickle.loads(work)
    _check(shared, run)
    worker = get_worker()
    last: Counts = (0,) * counters
    reported_at = 0.0

    def report(counts: Counts) -> None:
        nonlocal last, reported_at
        last = counts
        if time.monotonic() - reported_at >= every:
            reported_at = time.monotonic()
            worker.log_event(topic, (place, counts))

    try:
        return function(pickle.loads(job), report), last
    except WorkerDiedError as error:
        raise DataError(
            f"on {socket.gethostname()} processes died time and again ({error.how}): give its worker fewer "
            f"threads or more memory; the same command goes on."
        ) from None
