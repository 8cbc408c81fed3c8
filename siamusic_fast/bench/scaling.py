"""How rates, start-up and memory grow: with threads and batch sizes, with shards and with tracks."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.opening import repeated_shards
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.bench.stages import dali_loader, prepare
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

_BATCHES = (16, 64, 256)
_TRACKS = (1_000, 10_000, 100_000, 1_000_000)
_SHARDS = (1, 10, 100, 1_000)
_TRACKS_FOR_SHARDS = 10_000
_PER_SHARD = 512
_DEALT = 1_000
"""Tracks that are dealt to ever more shards, to measure the rate."""
_DEALT_SECONDS = 1.0
"""Of each, and of a crop: short, as the same audio is written several times."""

_OPEN = """
import sys
from pathlib import Path
from siamusic_fast.bench.opening import open_seconds

def peak() -> float:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024

before = peak()
print(open_seconds(Path(sys.argv[1])), peak() - before)
"""
"""Opens a loader in a process of its own, whose peak memory grows by that of the opening."""


def measure(
    shard_set: ShardSet,
    *,
    recipe: str,
    batch_size: int,
    device: torch.device,
    timing: Timing,
    most_tracks: int = _TRACKS[-1],
    most_shards: int = _SHARDS[-1],
    progress: Progress = SILENT,
) -> Report:
    """Measure the loader with 1 to all threads, several batch sizes and more and more shards, and opening.

    The sets that are opened are a few tracks under many names, since opening reads no audio; up to
    `most_tracks` and `most_shards`. The memory is what opening adds to that of a process that is ready to.
    """
    _, options = prepare(shard_set, batch_size=batch_size, device=device, progress=progress)
    threads = sorted({1, *(2**power for power in range(1, cores().bit_length())), cores()})
    sizes = [size for size in _BATCHES if size <= shard_set.tracks(["training"])]
    contenders = [
        _named(shard_set, {**options, "threads": count}, recipe, f"{count} threads") for count in threads
    ] + [_named(shard_set, {**options, "batch_size": size}, recipe, f"batches of {size}") for size in sizes]
    found = in_turns(contenders, timing, device, title="Threads and batch sizes", progress=progress)
    shards = [count for count in _SHARDS if count <= most_shards]
    found += _dealt(shards, options, recipe, device, timing, progress)
    openings = [
        *((tracks, _PER_SHARD) for tracks in _TRACKS if tracks <= most_tracks),
        *((_TRACKS_FOR_SHARDS, _TRACKS_FOR_SHARDS // count) for count in shards),
    ]
    with progress.task("Opening ever larger sets", len(openings), "sets") as task:
        for tracks, per_shard in openings:
            found += _opening(tracks, per_shard, timing.windows)
            task.advance()
    return Report(
        title=f"Scaling on {device.type}, recipe {recipe}",
        settings={
            "shards": shard_set.source,
            "recipe": recipe,
            "device": device.type,
            "batch_size": batch_size,
            "windows": timing.windows,
            "window_seconds": timing.seconds,
        },
        measurements=tuple(found),
    )


def _dealt(
    shards: Sequence[int],
    options: LoaderOptions,
    recipe: str,
    device: torch.device,
    timing: Timing,
    progress: Progress,
) -> list[Measurement]:
    """Return the rates of the same tracks in 1 and in more shards."""
    mel = MelConfig(seconds=_DEALT_SECONDS)
    short: LoaderOptions = {**options, "mel": mel, "batch_size": min(options["batch_size"], _DEALT)}
    with ExitStack() as stack:
        contenders = []
        for count in shards:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shards"
            made = make_shards(folder, _DEALT, seconds=2 * _DEALT_SECONDS, per_shard=-(-_DEALT // count))
            what = f"{count:,} shards of {_DEALT_SECONDS:g} s crops"
            contenders.append(_named(made, short, recipe, what))
        return in_turns(contenders, timing, device, title="More and more shards", progress=progress)


def _named(shard_set: ShardSet, options: LoaderOptions, recipe: str, what: str) -> Contender:
    return replace(dali_loader(shard_set, options, recipe), name=f"DALI: {what}", target=None)


def _opening(tracks: int, per_shard: int, windows: int) -> Sequence[Measurement]:
    """Return the time until a loader over so many tracks is open, and the memory that it takes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        repeated_shards(folder, tracks, per_shard)
        command = [sys.executable, "-c", _OPEN, str(folder)]
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(windows)
        ]
    seconds, memory = zip(*(map(float, run) for run in runs), strict=True)
    name = f"opening {tracks:,} tracks in {-(-tracks // per_shard):,} shards"
    return (
        Measurement(name=name, unit="s", windows=seconds, ours=True),
        Measurement(name=f"{name}, memory", unit="MiB", windows=memory, ours=True),
    )
