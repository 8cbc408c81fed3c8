"""Packing as users measure it; beside it decoding, a plain script, sha256sum, plans and openings at scale."""

import contextlib
import importlib.util
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from benchmarks.opening import opening_seconds
from benchmarks.result import Result, Target
from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import AudioError, decode
from siamusic_fast.bench import shard
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.report import Measurement, Ratio, named
from siamusic_fast.bench.shard import PACKING, RUNNING, pack_once, verify_once
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig

DECODING = "limit: decoding and resampling"
SCRIPT, SHA256SUM = "plain script", "sha256sum"
AT_SCALE = 1_000_000
_MIN_TRACKS = 200
"""Tracks below which packing from start to end has no target: the start of the processes is much of it."""
_SAMPLE = 40
"""Number of tracks that the limit and the script are measured with in each window."""

_PLAN = """
import sys, time
from pathlib import Path
from siamusic_fast.audio.corpus import SPLITS, Track
from siamusic_fast.shards.plan import plan_shards

tracks = [
    Track(f"{n:07d}", f"{n // 1000:04d}/{n:07d}.mp3", SPLITS[n % 10 // 8], f"genre {n % 17}" if n % 2 else "")
    for n in range(int(sys.argv[1]))
]
start = time.perf_counter()
plan_shards(tracks, tracks_per_shard=512, seed=0)
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text().split()
print(seconds, int(status[status.index("VmHWM:") + 1]) / 1024)
"""
"""Plans in a process of its own, whose peak memory is that of the tracks and the plan."""


def measure(
    *, tracks: int = 400, windows: int = 3, planned: int = AT_SCALE, progress: Progress = SILENT
) -> Result:
    """Measure what `siamusic-fast bench shard` does; then the same in turns with a script and sha256sum."""
    procs = cores()
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(procs, mp_context=multiprocessing.get_context("spawn")) as decoders,
    ):
        corpus = make_corpus(Path(scratch) / "audio", tracks, "mp3", progress=progress)
        limit = {DECODING: lambda: decoding_limit(decoders, procs, sample_of(corpus))}
        report = shard.measure(corpus, procs=procs, windows=windows, beside=limit, progress=progress)
        names = (f"{PACKING}, beside the script", SCRIPT, "verifying, beside sha256sum", SHA256SUM)
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(windows):
            shard_set, packed = pack_once(corpus, Path(scratch) / "shards", procs)
            found = (
                packed[PACKING],
                script_rate(sample_of(corpus), Path(scratch) / "script"),
                verify_once(shard_set, procs),
                _sha256sum_rate(shard_set, procs),
            )
            for name, rate in zip(names, found, strict=True):
                rates[name].append(rate)
        opening = opening_seconds(Path(scratch) / "opened", planned, windows)
    seconds, memory = zip(*(_plan(planned) for _ in range(windows)), strict=True)
    packing, script, verifying, summed = (
        Measurement(
            name=name,
            unit="tracks/s" if place < 2 else "MB/s",
            windows=tuple(rates[name]),
            ours=place % 2 == 0,
        )
        for place, name in enumerate(names)
    )
    time_of, memory_of, open_of = (
        Measurement(name=name, unit=unit, windows=tuple(of), ours=True)
        for name, unit, of in (
            (f"plan of {planned:,} tracks, time", "s", seconds),
            (f"plan of {planned:,} tracks, memory", "MiB", memory),
            (f"opening {planned:,} tracks", "s", opening),
        )
    )
    targets = {
        f"{RUNNING} / {DECODING}": Target(0.85),
        f"{packing.name} / {SCRIPT}": Target(3.0),
        f"{verifying.name} / {SHA256SUM}": Target(0.5),
    }
    if tracks >= _MIN_TRACKS:
        targets[f"{PACKING} / {DECODING}"] = Target(0.85)
    if planned >= AT_SCALE:
        limits = {time_of.name: 20.0, memory_of.name: 1024.0, open_of.name: 5.0}
        targets |= {name: Target(limit, at_most=True) for name, limit in limits.items()}
    decoding = named(report.measurements, DECODING)
    limited = [
        replace(one, limit=decoding.median) if one.name in (PACKING, RUNNING) else one
        for one in report.measurements
    ]
    report = replace(
        report,
        settings={**report.settings, "planned": planned},
        measurements=(*limited, packing, script, verifying, summed, time_of, memory_of, open_of),
        ratios=(
            *(Ratio.of(named(limited, name), decoding) for name in (PACKING, RUNNING)),
            Ratio.of(packing, script),
            Ratio.of(verifying, summed),
        ),
        notes=(*report.notes, f"{SCRIPT}: {_script_name()}"),
    )
    return Result(report=report, targets=targets)


def sample_of(corpus: Corpus) -> list[Path]:
    """Return tracks that are evenly spread over the corpus."""
    step = max(1, len(corpus.tracks) // _SAMPLE)
    return [Path(corpus.folder, track.path) for track in corpus.tracks[::step][:_SAMPLE]]


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


def _script_name() -> str:
    if importlib.util.find_spec("librosa"):
        return "librosa.load, numpy.save"
    return "soundfile, numpy.mean and soxr as in librosa.load (librosa is not installed), numpy.save"


def script_rate(paths: Sequence[Path], folder: Path) -> float:
    """Return tracks per second of what one would write first: one process that loads and saves."""
    load: Any = _load
    if importlib.util.find_spec("librosa"):
        load = importlib.import_module("librosa").load
    folder.mkdir(exist_ok=True)
    load(paths[0], sr=PackConfig.sample_rate)  # librosa imports and compiles on its first call
    start = time.perf_counter()
    for path in paths:
        audio, _ = load(path, sr=PackConfig.sample_rate)
        np.save(folder / f"{path.stem}.npy", audio)
    return len(paths) / (time.perf_counter() - start)


def _load(path: Path, sr: int) -> tuple[Any, int]:
    """Do what librosa.load 0.11 does: decode to float32, average channels, resample with soxr HQ."""
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        audio = file.read(dtype="float32").T
    if audio.ndim > 1:
        audio = np.mean(audio, axis=0)
    if rate != sr:
        audio = soxr.resample(audio, rate, sr, "HQ")
    return audio, sr


def _sha256sum_rate(shard_set: ShardSet, procs: int) -> float:
    """Return the MB/s of as many processes of sha256sum on the same files."""
    command = shutil.which("sha256sum")
    assert command, "sha256sum is a part of GNU coreutils"
    shards = shard_set.shards(list(shard_set.splits))
    shares = [[str(shard_set.path(shard.file)) for shard in shards[n::procs]] for n in range(procs)]
    start = time.perf_counter()
    running = [subprocess.Popen([command, *share], stdout=subprocess.DEVNULL) for share in shares if share]
    for process in running:
        process.wait()
    return sum(shard.bytes for shard in shards) / 1e6 / (time.perf_counter() - start)


def _plan(tracks: int) -> tuple[float, float]:
    """Return seconds, and MiB at the peak, of planning a synthetic list."""
    done = subprocess.run(
        [sys.executable, "-c", _PLAN, str(tracks)], check=True, capture_output=True, text=True
    )
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory
