"""Measures how fast packing and verifying are."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.verify import verify

PACKING = "packing, from start to end"
RUNNING = "packing, processes running"
VERIFYING = "verifying"
_SHARDS_PER_PROCESS = 8


def measure(
    corpus: Corpus | None = None,
    *,
    tracks: int = 400,
    procs: int | None = None,
    windows: int = 3,
    beside: Mapping[str, Callable[[], float]] | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Pack `corpus`, or `tracks` MP3s of 30 s that are made for it, `windows` times, and verify the shards.

    What is `beside` them returns tracks per second, and is called in turns with them. All output goes to a
    temporary folder. Raises `ConfigError` for less than one window or track, and `DataError` if no track can
    be packed.
    """
    if windows < 1 or tracks < 1:
        raise ConfigError(f"windows = {windows} and tracks = {tracks} must be at least 1.")
    procs, beside = procs or cores(), beside or {}
    rates: dict[str, list[float]] = {name: [] for name in (*beside, PACKING, RUNNING, VERIFYING)}
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.task("Packing and verifying", windows, "windows") as task,
    ):
        corpus = corpus or make_corpus(Path(scratch) / "audio", tracks, "mp3")
        for _ in range(windows):
            others = {name: call() for name, call in beside.items()}
            shard_set, packed = pack_once(corpus, Path(scratch) / "shards", procs)
            for name, rate in (others | packed | {VERIFYING: verify_once(shard_set, procs)}).items():
                rates[name].append(rate)
            task.advance(note=f"{packed[RUNNING]:,.1f} tracks/s")
    return Report(
        title=f"Packing {len(corpus.tracks):,} tracks to {PackConfig.codec} with {procs} processes",
        settings={"source": corpus.name, "tracks": len(corpus.tracks), "procs": procs, "windows": windows},
        measurements=tuple(
            Measurement(
                name=name,
                unit="MB/s" if name == VERIFYING else "tracks/s",
                windows=tuple(found),
                ours=name not in beside,
            )
            for name, found in rates.items()
        ),
    )


def pack_once(corpus: Corpus, folder: Path, procs: int) -> tuple[ShardSet, dict[str, float]]:
    """Return the shards, and tracks per second from start to end and while the processes ran."""
    clock = _PackingClock()
    config = PackConfig(tracks_per_shard=-(-len(corpus.tracks) // (procs * _SHARDS_PER_PROCESS)))
    start = time.perf_counter()
    shard_set = pack(corpus, folder, config, procs=procs, force=True, progress=clock)
    seconds = time.perf_counter() - start
    return shard_set, {PACKING: clock.tracks / seconds, RUNNING: clock.tracks / clock.seconds}


class _PackingClock:
    """A display that shows nothing and notes how many tracks are packed, and in how many seconds."""

    @contextlib.contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        start = time.perf_counter()
        with SILENT.task(description, total, unit) as task:
            yield task
        if description == "Packing":
            self.tracks, self.seconds = total, time.perf_counter() - start


def verify_once(shard_set: ShardSet, procs: int) -> float:
    """Return the MB/s of verifying the shards."""
    start = time.perf_counter()
    verify(shard_set.folder, procs=procs)
    seconds = time.perf_counter() - start
    return sum(shard.bytes for shard in shard_set.shards(list(shard_set.splits))) / 1e6 / seconds
