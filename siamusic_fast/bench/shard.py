"""How fast packing, planning and verifying are, beside this machine's limit, a plain script and sha256sum."""

import importlib.util
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.decode import AudioError, decode
from siamusic_fast.bench.opening import opening_seconds
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, PackStatus, pack
from siamusic_fast.shards.verify import verify

_RATE = 22_050
_CLIPS = 8
"""Recordings that a corpus of our own has; its files differ in their tags."""
_SINGLE = 40
"""Tracks that the limit and the script are measured with, in each window."""
_SHARDS_PER_WORKER = 8
_FEWEST_TRACKS = 200
"""That packing from start to end is judged by: of fewer, the start of the processes is much."""

# What the project asks of itself: at least so many times the rate of the other, and at most so much.
_OF_LIMIT, _OVER_SCRIPT, _OF_SHA256SUM = 0.85, 3.0, 0.5
_AT_SCALE = 1_000_000
_PLAN_SECONDS, _PLAN_MEBIBYTES, _OPENING_SECONDS = 20.0, 1024.0, 5.0

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
    corpus: Corpus | None = None,
    *,
    tracks: int = 400,
    procs: int | None = None,
    windows: int = 3,
    planned: int = 1_000_000,
    progress: Progress = SILENT,
) -> Report:
    """Pack `corpus`, or `tracks` MP3s of 30 s that are made for it, `windows` times, and all else beside it.

    Rates that are compared are measured in turns, in each window: the limit is the cores that `procs` use
    over the CPU seconds that decoding and resampling a track takes while as many processes do so; the script
    is one process, a loop of loading and `numpy.save`. What is written goes to a temporary folder. Raises
    `ConfigError` for less than one window or track, and `DataError` if no track can be decoded.
    """
    procs = procs or cores()
    if windows < 1 or tracks < 1 or planned < 1:
        raise ConfigError(
            f"windows = {windows}, tracks = {tracks} and planned = {planned} must be at least 1."
        )
    rates: dict[str, list[float]] = {name: [] for name in (_LIMIT, _PACKER, _RUNNING, _BY_CPU, _SCRIPT)}
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        if corpus is None:
            corpus = synthesize(scratch / "audio", tracks, progress)
        sample = _sample(corpus)
        with (
            ProcessPoolExecutor(procs, mp_context=multiprocessing.get_context("spawn")) as decoders,
            progress.task("Packing in turns", windows, "windows") as task,
        ):
            _limit(decoders, procs, sample)  # starts them
            for _ in range(windows):
                rates[_LIMIT].append(_limit(decoders, procs, sample))
                shard_set, packed = _pack(corpus, scratch / "shards", procs)
                for name, rate in packed.items():
                    rates[name].append(rate)
                rates[_SCRIPT].append(_script_rate(sample, scratch / "script"))
                task.advance(note=f"{packed[_RUNNING]:,.1f} tracks/s of {rates[_LIMIT][-1]:,.1f}")
        verified, summed = _verify_rates(shard_set, procs, windows)
        opening = opening_seconds(scratch / "opened", planned, windows)
    plan_seconds, plan_memory = zip(*(_plan(planned) for _ in range(windows)), strict=True)
    found = [
        Measurement(name=name, unit="tracks/s", windows=tuple(of), ours=name in (_PACKER, _RUNNING, _BY_CPU))
        for name, of in rates.items()
    ]
    limit, packer, running, by_cpu, script = found
    ratios = [
        Ratio.of(running, limit, target=_OF_LIMIT),
        Ratio.of(packer, limit, target=_OF_LIMIT if len(corpus.tracks) >= _FEWEST_TRACKS else None),
        Ratio.of(by_cpu, limit),
        Ratio.of(packer, script, target=_OVER_SCRIPT),
    ]
    found += [verified, summed] if summed else [verified]
    if summed:
        ratios.append(Ratio.of(verified, summed, target=_OF_SHA256SUM))
    found += [
        _at_scale(f"plan of {planned:,} tracks, time", "s", plan_seconds, planned, _PLAN_SECONDS),
        _at_scale(f"plan of {planned:,} tracks, memory", "MiB", plan_memory, planned, _PLAN_MEBIBYTES),
        _at_scale(f"opening {planned:,} tracks", "s", opening, planned, _OPENING_SECONDS),
    ]
    return Report(
        title=f"Packing {len(corpus.tracks):,} tracks to wav",
        settings={
            "source": corpus.name,
            "codec": PackConfig.codec,
            "tracks": len(corpus.tracks),
            "procs": procs,
            "windows": windows,
            "planned": planned,
        },
        measurements=tuple(found),
        ratios=tuple(ratios),
        limits=dict.fromkeys((_PACKER, _RUNNING, _BY_CPU), limit.median),
        notes=(f"obvious script: {_script_name()}",),
    )


_LIMIT = "limit: cores / CPU seconds of decoding and resampling"
_PACKER = "packer, from start to end"
_RUNNING = "packer, workers running"
_BY_CPU = "packer, by its CPU time"
_SCRIPT = "obvious script"


def _at_scale(name: str, unit: str, windows: Sequence[float], tracks: int, target: float) -> Measurement:
    """Return what the project limits for a million tracks; fewer have no target."""
    return Measurement(
        name=name,
        unit=unit,
        windows=tuple(windows),
        ours=True,
        target=target if tracks >= _AT_SCALE else None,
        at_most=True,
    )


def synthesize(folder: Path, tracks: int, progress: Progress = SILENT, seconds: float = 30) -> Corpus:
    """Write `tracks` MP3s, 44.1 kHz and stereo, and return them: chords with noise, no two files equal."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = []
    with progress.task("Making MP3s", min(tracks, _CLIPS), "recordings") as task:
        for clip in range(min(tracks, _CLIPS)):
            time_axis = np.arange(round(seconds * 44_100)) / 44_100
            pitches = 110 * 2 ** (rng.integers(0, 36, 4) / 12)
            chord = sum(np.sin(2 * np.pi * pitch * time_axis) for pitch in pitches) / 8
            stereo = np.stack([chord, chord * 0.8], axis=1) + rng.normal(0, 0.05, (len(time_axis), 2))
            soundfile.write(folder / "clip.mp3", stereo.clip(-1, 1), 44_100)
            content = (folder / "clip.mp3").read_bytes()
            for number in range(clip, tracks, _CLIPS):
                # An ID3v1 tag: it takes the last 128 bytes, the title 30 of them.
                tag = b"TAG" + f"{number}".encode().ljust(125, b"\0")
                (folder / f"{number:06d}.mp3").write_bytes(content + tag)
                names.append(f"{number:06d}")
            task.advance()
    (folder / "clip.mp3").unlink()
    listed = tuple(Track(name, f"{name}.mp3", "training", "") for name in sorted(names))
    return Corpus(name="bench", folder=folder, tracks=listed)


def _sample(corpus: Corpus) -> list[Path]:
    """Return tracks that can be decoded, evenly spread over the corpus."""
    paths = [corpus.folder / track.path for track in corpus.tracks]
    found = [path for path in paths[:: max(1, len(paths) // _SINGLE)] if _decodes(path)][:_SINGLE]
    if not found:
        raise DataError(f"{corpus.folder} has no track that can be decoded: give a folder of audio.")
    return found


def _decodes(path: Path) -> bool:
    try:
        return len(decode(path, _RATE)) > 0
    except AudioError:
        return False


def _limit(decoders: Executor, procs: int, paths: Sequence[Path]) -> float:
    """Return the tracks per second that `procs` processes would decode if they did nothing else."""
    futures = [decoders.submit(_cpu_seconds, paths) for _ in range(procs)]
    return _used(procs) / statistics.fmean(future.result() for future in futures)


def _used(procs: int) -> int:
    """Return how many cores so many processes use: none has more than one, and there are no more than all."""
    return min(procs, cores())


def _cpu_seconds(paths: Sequence[Path]) -> float:
    """Return what decoding and resampling takes per track, in CPU seconds of one process."""
    start = time.process_time()
    for path in paths:
        decode(path, _RATE)
    return (time.process_time() - start) / len(paths)


def _pack(corpus: Corpus, folder: Path, procs: int) -> tuple[ShardSet, dict[str, float]]:
    """Return tracks per second: from start to end, since the first track was done, and by CPU time.

    The last is what the CPU seconds of the workers allow, start-up included: that of a machine on which
    nothing else runs and no disk is waited for.
    """
    seen: list[tuple[float, PackStatus]] = []

    def watch(status: PackStatus) -> None:
        seen.append((time.perf_counter(), status))

    config = PackConfig(tracks_per_shard=-(-len(corpus.tracks) // (procs * _SHARDS_PER_WORKER)))
    cpu_before = _cpu_of_children()
    start = time.perf_counter()
    shard_set = pack(corpus, folder, config, procs=procs, force=True, watch=watch)
    seconds = time.perf_counter() - start
    busy = [(when, status.files) for when, status in seen if status.files_now]
    (first, before), (last, after) = busy[0], busy[-1]
    return shard_set, {
        _PACKER: after / seconds,
        _RUNNING: (after - before) / (last - first) if after > before else after / seconds,
        _BY_CPU: _used(procs) * after / (_cpu_of_children() - cpu_before),
    }


def _cpu_of_children() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _script_name() -> str:
    if importlib.util.find_spec("librosa"):
        return "librosa.load, numpy.save"
    return "soundfile, numpy.mean and soxr as in librosa.load (librosa is not installed), numpy.save"


def _script_rate(paths: Sequence[Path], folder: Path) -> float:
    """Return tracks per second of what one would write first."""
    load: Any = _load
    if importlib.util.find_spec("librosa"):
        load = importlib.import_module("librosa").load
    folder.mkdir(exist_ok=True)
    load(paths[0], sr=_RATE)  # librosa imports and compiles on its first call
    start = time.perf_counter()
    for path in paths:
        audio, _ = load(path, sr=_RATE)
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


def _verify_rates(shard_set: ShardSet, procs: int, windows: int) -> tuple[Measurement, Measurement | None]:
    """Return MB/s of `verify`, and of as many processes of sha256sum if there is one, on the same files."""
    shards = shard_set.shards(list(shard_set.splits))
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    shares = [[str(shard_set.path(shard.file)) for shard in shards[n::procs]] for n in range(procs)]
    command = shutil.which("sha256sum")
    ours, theirs = [], []
    for _ in range(windows):
        if command:
            start = time.perf_counter()
            running = [
                subprocess.Popen([command, *share], stdout=subprocess.DEVNULL) for share in shares if share
            ]
            for process in running:
                process.wait()
            theirs.append(megabytes / (time.perf_counter() - start))
        start = time.perf_counter()
        verify(shard_set.folder, procs=procs)
        ours.append(megabytes / (time.perf_counter() - start))
    name = f"sha256sum, {procs} processes"
    return (
        Measurement(name=f"verify, {procs} processes", unit="MB/s", windows=tuple(ours), ours=True),
        Measurement(name=name, unit="MB/s", windows=tuple(theirs)) if theirs else None,
    )


def _plan(tracks: int) -> tuple[float, float]:
    """Return seconds, and MiB at the peak, of planning a synthetic list."""
    done = subprocess.run(
        [sys.executable, "-c", _PLAN, str(tracks)], check=True, capture_output=True, text=True
    )
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory
