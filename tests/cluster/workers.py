"""A scheduler of Dask and its workers as processes of this machine, and what is done to them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.progress import Task

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]


def start(*words: str | Path, log: Path) -> Process:
    """Start `python -m` with these words; what it prints goes to `log`."""
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, words)], stdout=file, stderr=file, env=environment, cwd=ROOT
        )


@contextmanager
def started(
    folder: Path, *workers: str, security: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[Process]]]:
    """Start a scheduler, and a worker of one thread for each of `workers`.

    Their names say what they are: a nanny replaces the one that is "nursed" when it is killed. Gives the
    address and the processes, the scheduler first.
    """
    log = folder / "scheduler.log"
    common = ("--host", "127.0.0.1", "--no-dashboard", *security)
    running = [start("distributed.cli.dask_scheduler", "--port", "0", *common, log=log)]
    try:
        while not (found := re.search(r"(tcp|tls)://127\.0\.0\.1:\d+", log.read_text())):
            assert running[0].poll() is None, log.read_text()
            time.sleep(0.05)
        for name in workers:
            nanny = "--nanny" if name == "nursed" else "--no-nanny"
            worker = (found[0], nanny, "--name", name, "--nthreads", "1", "--local-directory", folder)
            log = folder / f"{name}.log"
            running.append(start("distributed.cli.dask_worker", *worker, *common, log=log))
        yield found[0], running
    finally:
        for process in reversed(running):  # a worker hangs if its scheduler ends at the same moment
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pid_and_name(dask_worker: Any) -> tuple[int, str]:
    """Return the process and the name of a worker, on that worker."""
    return os.getpid(), dask_worker.name


def kill_nursed(cluster: Cluster) -> None:
    """Kill the worker that is replaced."""
    for pid, name in cluster._client.run(pid_and_name).values():
        if name == "nursed":
            os.kill(pid, signal.SIGKILL)


class AtStep:
    """A display that does something once, when a task has come so many steps far, and adds up its steps."""

    def __init__(self, task: str, step: int, act: Callable[[], None]) -> None:
        self.name, self.left, self.act = task, step, act
        self.steps, self.shown = 0, False

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        """Note whether it is the task."""
        self.shown = description == self.name
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        """Act if the step is reached."""
        if self.shown:
            self.steps += steps
            if self.left > 0 >= self.left - steps:
                self.act()
            self.left -= steps
