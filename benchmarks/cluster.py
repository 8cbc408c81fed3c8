"""What packing on Dask costs beside the local pool of processes: the same shards, in turns."""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.result import Result, Target, cpu_ratio
from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.processes.cluster import Cluster, open_cluster
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.pack import PackConfig, pack

POOL = "processes"
LOCAL, TCP = "Dask in this process", "Dask scheduler and worker, tcp"
_MOST = 1.05
"""What Dask may cost, divided by what the pool costs."""
_SHARDS_PER_PROCESS = 8
_FILE = "scheduler.json"
"""File in which the scheduler tells its address."""


def measure(*, tracks: int = 400, windows: int = 5, progress: Progress = SILENT) -> Result:
    """Pack `tracks` MP3s of 30 s with the pool and on both kinds of Dask cluster, in turns, in every order.

    Each uses one process per core. The time is that of `pack` alone; clusters are there before. CPU seconds
    are those of all processes: this one, scheduler, worker, and those that decode.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (POOL, LOCAL, TCP)}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    opening = []
    orders = itertools.cycle(itertools.permutations(seconds))
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.task("Packing in turns", windows, "windows") as task,
        _processes(Path(scratch)) as address,
        open_cluster(address) as remote,
    ):
        corpus = make_corpus(Path(scratch) / "audio", tracks, "mp3")
        for _ in range(windows):
            start = time.perf_counter()
            with open_cluster("local") as here:
                opening.append(time.perf_counter() - start)
                clusters = {POOL: None, LOCAL: here, TCP: remote}
                for name in next(orders):
                    took, used = _pack(corpus, Path(scratch) / "shards", clusters[name])
                    seconds[name].append(took)
                    cpu[name].append(used)
            task.advance(note=f"{tracks / seconds[TCP][-1]:,.1f} tracks/s")
    rates = {
        name: Measurement(
            name=name,
            unit="tracks/s",
            windows=tuple(tracks / value for value in seconds[name]),
            cpu_windows=tuple(1000 * value / tracks for value in cpu[name]),
            ours=True,
        )
        for name in seconds
    }
    dask = [rates[LOCAL], rates[TCP]]
    times = tuple(_time_ratio(one, rates[POOL]) for one in dask)
    cpus = tuple(cpu_ratio(one, rates[POOL]) for one in dask)
    return Result(
        report=Report(
            title=f"Packing {tracks:,} tracks with {cores()} processes, and on Dask",
            settings={"tracks": tracks, "procs": cores(), "windows": windows},
            measurements=(
                *rates.values(),
                Measurement(name="opening of Dask in this process", unit="s", windows=tuple(opening)),
            ),
            ratios=(*times, *cpus),
        ),
        targets={one.name: Target(_MOST, at_most=True) for one in (*times, *cpus)},
    )


def _time_ratio(above: Measurement, below: Measurement) -> Ratio:
    pairs = zip(above.windows, below.windows, strict=True)
    return Ratio(name=f"time: {above.name} / {below.name}", windows=tuple(b / a for a, b in pairs))


def _pack(corpus: Corpus, folder: Path, cluster: Cluster | None) -> tuple[float, float]:
    """Return the seconds, and the CPU seconds of all processes, of packing."""
    config = PackConfig(tracks_per_shard=-(-len(corpus.tracks) // (cores() * _SHARDS_PER_PROCESS)))
    before, start = _cpu_seconds(), time.perf_counter()
    pack(corpus, folder, config, cluster=cluster, force=True)
    return time.perf_counter() - start, _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, those that have ended included."""
    this = psutil.Process()
    return sum(sum(one.cpu_times()[:4]) for one in (this, *this.children(recursive=True)))


@contextmanager
def _processes(folder: Path) -> Iterator[str]:
    """Start a scheduler, and a worker with a thread per core, as processes; gives the scheduler's address."""
    file = folder / _FILE
    common = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file))
    worker = ("--nthreads", str(cores()), "--no-nanny", "--local-directory", str(folder))
    programs: list[tuple[str, ...]] = [
        ("distributed.cli.dask_scheduler", "--port", "0", *common),
        ("distributed.cli.dask_worker", *worker, *common),
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for words in programs:
            log = folder / f"{words[0]}.log"
            running.append(_start(words, log))
            _wait(lambda: file.exists() and file.stat().st_size > 0, running[-1], log)
        yield str(json.loads(file.read_text())["address"])
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def _start(words: tuple[str, ...], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", *words], stdout=output, stderr=output)


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    while not condition():
        if process.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.05)
