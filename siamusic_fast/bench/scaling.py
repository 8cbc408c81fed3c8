"""How rates, start-up and memory grow: with threads and batch sizes, with shards and with tracks."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.bench.stages import dali_loader
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

_BATCHES = (16, 64, 256)
_TRACKS = (1_000, 10_000, 100_000, 1_000_000)
_SHARDS = (1, 10, 100, 1_000)
_TRACKS_FOR_SHARDS = 10_000
_PER_SHARD = 512

_OPEN = """
import sys
from pathlib import Path
from siamusic_fast.bench.opening import opening_seconds

seconds = opening_seconds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
status = Path("/proc/self/status").read_text().split()
print(seconds, int(status[status.index("VmHWM:") + 1]) / 1024)
"""
"""Opens a loader in a process of its own, whose peak memory is that of the opening."""


def measure(
    shard_set: ShardSet,
    *,
    recipe: str,
    batch_size: int,
    device: torch.device,
    timing: Timing,
    most_tracks: int = _TRACKS[-1],
    progress: Progress = SILENT,
) -> Report:
    """Measure the loader with 1 to all threads and with several batch sizes, and opening ever larger sets.

    The large sets are a few tracks under many names, since opening reads no audio; up to `most_tracks`.
    """
    mel = MelConfig(sample_rate=shard_set.sample_rate)
    options: LoaderOptions = {
        "mel": mel,
        "device": device,
        "batch_size": batch_size,
        "threads": cores(),
        "normalisation": estimate(shard_set, mel, progress),
    }
    threads = sorted({1, *(2**power for power in range(1, cores().bit_length())), cores()})
    sizes = [size for size in _BATCHES if size <= shard_set.tracks(["training"])]
    contenders = [
        _named(shard_set, {**options, "threads": count}, recipe, f"{count} threads") for count in threads
    ] + [_named(shard_set, {**options, "batch_size": size}, recipe, f"batches of {size}") for size in sizes]
    found = in_turns(contenders, timing, device, title="Threads and batch sizes", progress=progress)
    openings = [
        *((tracks, _PER_SHARD) for tracks in _TRACKS if tracks <= most_tracks),
        *((_TRACKS_FOR_SHARDS, _TRACKS_FOR_SHARDS // count) for count in _SHARDS),
    ]
    with progress.task("Opening ever larger sets", len(openings), "sets") as task:
        for tracks, per_shard in openings:
            found += _opening(tracks, per_shard)
            task.advance()
    return Report(
        title=f"Scaling on {device.type}, recipe {recipe}",
        settings={"shards": shard_set.source, "recipe": recipe, "device": device.type},
        measurements=tuple(found),
    )


def _named(shard_set: ShardSet, options: LoaderOptions, recipe: str, what: str) -> Contender:
    loader = dali_loader(shard_set, options, recipe)
    return Contender(name=f"DALI: {what}", items=loader.items, open=loader.open)


def _opening(tracks: int, per_shard: int) -> Sequence[Measurement]:
    """Return the time until a loader over so many tracks is open, and the memory of its process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _OPEN, str(Path(folder) / "shards"), str(tracks), str(per_shard)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory = map(float, done.stdout.split())
    name = f"opening {tracks:,} tracks in {-(-tracks // per_shard):,} shards"
    return (
        Measurement(name=name, unit="s", windows=(seconds,)),
        Measurement(name=f"{name}, memory", unit="MiB", windows=(memory,)),
    )
