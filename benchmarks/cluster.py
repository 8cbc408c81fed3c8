"""What packing on Dask costs beside the local pool of processes: the same shards, in turns."""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clock import cpu_seconds, cpu_seconds_of_all
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
    are those of all processes: this one, scheduler, worker, and those that decode. These do the same in all
    three, and what else the machine does changes them more than Dask costs: the cost of an engine is that of
    the pool's decoding and the engine's own processes.
    """
    used: dict[str, list[_Used]] = {name: [] for name in (POOL, LOCAL, TCP)}
    opening = []
    orders = itertools.cycle(itertools.permutations(used))
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.task("Packing in turns", windows, "windows") as task,
        _processes(Path(scratch)) as (address, pids),
        open_cluster(address) as remote,
    ):
        corpus = make_corpus(Path(scratch) / "audio", tracks, "mp3")
        for _ in range(windows):
            start = time.perf_counter()
            with open_cluster("local") as here:
                opening.append(time.perf_counter() - start)
                clusters = {POOL: None, LOCAL: here, TCP: remote}
                for name in next(orders):
                    own = ("self", *pids) if name == TCP else ("self",)
                    used[name].append(_pack(corpus, Path(scratch) / "shards", clusters[name], own))
            task.advance(note=f"{tracks / used[TCP][-1].seconds:,.1f} tracks/s")
    rates = {
        name: Measurement(
            name=name,
            unit="tracks/s",
            windows=tuple(tracks / one.seconds for one in used[name]),
            cpu_windows=tuple(1000 * one.cpu / tracks for one in used[name]),
            ours=True,
        )
        for name in used
    }
    owns = [
        Measurement(
            name=f"{name}, CPU besides decoding",
            unit="ms",
            windows=tuple(1000 * one.own / tracks for one in used[name]),
        )
        for name in used
    ]
    ratios: list[Ratio] = []
    for name in (LOCAL, TCP):
        pairs = list(zip(used[name], used[POOL], strict=True))
        costs = tuple((pool.cpu - pool.own + dask.own) / pool.cpu for dask, pool in pairs)
        times = tuple(dask.seconds / pool.seconds for dask, pool in pairs)
        ratios += [
            Ratio(name=f"cost: {name} / {POOL}", windows=costs),
            Ratio(name=f"time: {name} / {POOL}", windows=times),
            cpu_ratio(rates[name], rates[POOL]),
        ]
    return Result(
        report=Report(
            title=f"Packing {tracks:,} tracks with {cores()} processes, and on Dask",
            settings={"tracks": tracks, "procs": cores(), "windows": windows},
            measurements=(
                *rates.values(),
                *owns,
                Measurement(name="opening of Dask in this process", unit="s", windows=tuple(opening)),
            ),
            ratios=tuple(ratios),
            notes=("cost: CPU seconds of the pool's decoding and of the engine's own processes",),
        ),
        targets={one.name: Target(_MOST, at_most=True) for one in ratios},
    )


@dataclass(frozen=True, kw_only=True)
class _Used:
    """What packing took."""

    seconds: float
    cpu: float
    """CPU seconds of all processes."""
    own: float
    """CPU seconds of those that do not decode."""


def _pack(corpus: Corpus, folder: Path, cluster: Cluster | None, own: Sequence[str]) -> _Used:
    """Pack; `own` are the processes that do not decode."""
    config = PackConfig(tracks_per_shard=-(-len(corpus.tracks) // (cores() * _SHARDS_PER_PROCESS)))

    def own_seconds() -> float:
        return sum(sum(cpu_seconds(process)[:2]) for process in own)

    start, cpu, besides = time.perf_counter(), cpu_seconds_of_all(), own_seconds()
    pack(corpus, folder, config, cluster=cluster, force=True)
    return _Used(
        seconds=time.perf_counter() - start,
        cpu=cpu_seconds_of_all() - cpu,
        own=own_seconds() - besides,
    )


@contextmanager
def _processes(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Start a scheduler, and a worker with a thread per core; gives the address, and their numbers."""
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
        yield json.loads(file.read_text())["address"], [str(process.pid) for process in running]
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
