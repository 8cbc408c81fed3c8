"""Measures how fast packing and verifying are, beside what decoding alone would allow on this machine."""

import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import AudioError, decode
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.verify import verify

DECODING = "limit: decoding and resampling"
PACKING = "packing, from start to end"
RUNNING = "packing, processes running"
_SAMPLE = 40
"""Number of tracks that the limit is measured with in each window."""
_SHARDS_PER_PROCESS = 8


def measure(
    corpus: Corpus | None = None,
    *,
    tracks: int = 400,
    procs: int | None = None,
    windows: int = 3,
    progress: Progress = SILENT,
) -> Report:
    """Pack `corpus`, or `tracks` MP3s of 30 s that are made for it, `windows` times, and verify the shards.

    In turns with it, the limit is measured: see `decoding_limit`. All output goes to a temporary folder.
    Raises `ConfigError` for less than one window or track, and `DataError` if no track can be packed.
    """
    if windows < 1 or tracks < 1:
        raise ConfigError(f"windows = {windows} and tracks = {tracks} must be at least 1.")
    procs = procs or cores()
    rates: dict[str, list[float]] = {DECODING: [], PACKING: [], RUNNING: []}
    verified = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(procs, mp_context=multiprocessing.get_context("spawn")) as decoders,
        progress.task("Packing and verifying", windows, "windows") as task,
    ):
        corpus = corpus or make_corpus(Path(scratch) / "audio", tracks, "mp3")
        for _ in range(windows):
            rates[DECODING].append(decoding_limit(decoders, procs, sample_of(corpus)))
            shard_set, packed = pack_once(corpus, Path(scratch) / "shards", procs)
            for name, rate in packed.items():
                rates[name].append(rate)
            verified.append(verify_once(shard_set, procs))
            task.advance(note=f"{packed[RUNNING]:,.1f} tracks/s of {rates[DECODING][-1]:,.1f}")
    limit, *ours = (
        Measurement(name=name, unit="tracks/s", windows=tuple(found), ours=name != DECODING)
        for name, found in rates.items()
    )
    return Report(
        title=f"Packing {len(corpus.tracks):,} tracks to {PackConfig.codec} with {procs} processes",
        settings={"source": corpus.name, "tracks": len(corpus.tracks), "procs": procs, "windows": windows},
        measurements=(
            limit,
            *(replace(one, limit=limit.median) for one in ours),
            Measurement(name="verifying", unit="MB/s", windows=tuple(verified), ours=True),
        ),
        ratios=tuple(Ratio.of(one, limit) for one in ours),
    )


def sample_of(corpus: Corpus) -> list[Path]:
    """Return tracks that are evenly spread over the corpus."""
    step = max(1, len(corpus.tracks) // _SAMPLE)
    return [corpus.folder / track.path for track in corpus.tracks[::step][:_SAMPLE]]


def decoding_limit(decoders: Executor, procs: int, paths: Sequence[Path]) -> float:
    """Return the tracks per second that `procs` processes would pack if they only decoded and resampled.

    It is the number of cores in use over the CPU seconds that a track takes while all `decoders` are at work.
    """
    futures = [decoders.submit(_cpu_seconds, paths) for _ in range(procs)]
    return min(procs, cores()) / statistics.fmean(future.result() for future in futures)


def _cpu_seconds(paths: Sequence[Path]) -> float:
    """Return the CPU seconds of this process for decoding and resampling one track."""
    start = time.process_time()
    for path in paths:
        with contextlib.suppress(AudioError):
            decode(path, PackConfig.sample_rate)
    return (time.process_time() - start) / len(paths)


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
