"""Measures how large corpora may become, for the sizing tables of docs/scaling.md.

python -m benchmarks.sizing.run [--most N] [--music FOLDER] [--out FOLDER]

--most is the largest number of tracks, by default ten million, which takes 4 GiB and some minutes. With a
hundred million, more than 10 GiB are needed, and ten million are planned. --music is a folder of audio that
the sizes by codec are of.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks import result
from benchmarks.process import call_in_process
from benchmarks.result import Result, Target
from benchmarks.run import HERE
from benchmarks.sizing.cluster import Cluster, simulate
from benchmarks.sizing.opening import (
    gigabytes_per_1000_hours,
    hash_rate,
    make_sets,
    open_set,
    seconds_per_file,
)
from benchmarks.sizing.order import order, share
from benchmarks.sizing.packing import Packed, pack_without_audio, plan
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.cli.console import progress
from siamusic_fast.config import CODECS
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.pack import PackConfig
from siamusic_fast.shards.tables import read_tracks

SIZES = (1_000_000, 10_000_000, 100_000_000)
MOST = 10_000_000
"""Most tracks that are planned: each takes some 300 bytes."""
LIMITS = {
    f"plan of {MOST:,} tracks, time": 60.0,
    f"plan of {MOST:,} tracks, memory": 4_096.0,
    f"opening {MOST:,} tracks, time": 30.0,
}
"""Seconds and MiB that the project allows."""
WORKERS, SIMULATED, HOURS, SHARD_SIZES = (
    1_000,
    (1_000_000, 100_000_000),
    (1.0, 24.0),
    (128, 512, 2_048, 8_192),
)
"""Workers of the simulated cluster, tracks that it packs, hours between the failures of a worker."""
_SEEDS = 3
SHARDS, PROCESSES = 10_000, 512
_WINDOWS = 3
_PER_SHARD = PackConfig.tracks_per_shard

Rows = Iterator[Measurement]


@click.command()
@click.option("--most", default=MOST)
@click.option("--music", type=click.Path(path_type=Path, file_okay=False), default=None)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=HERE)
@click.option("--seconds-per-track", default=1 / 32, help="Time of one core for packing a track.")
def main(most: int, music: Path | None, out: Path, seconds_per_track: float) -> None:
    """Measure this machine."""
    started = time.perf_counter()
    shown = progress(quiet=False)
    found = measure(most, music=music, seconds_per_track=seconds_per_track, progress=shown)
    result.keep(found, out / "sizing.json", started)


def measure(
    most: int = MOST,
    *,
    music: Path | None = None,
    seconds_per_track: float = 1 / 32,
    files: int = 10_000,
    packed: int = 1_000_000,
    sizes: Sequence[int] = SIZES,
    shards: int = SHARDS,
    processes: int = PROCESSES,
    workers: int = WORKERS,
    progress: Progress = SILENT,
) -> Result:
    """Plan, open and order sets of `sizes` up to `most`; simulate the sharing of an epoch, and a cluster.

    A worker of the cluster takes `seconds_per_track`. `files` are scanned, and `packed` tracks are packed
    without their audio. Sizes by codec are those of `music`.
    """
    sizes = [size for size in sizes if size <= most]
    rows: list[Measurement] = []
    settings: dict[str, object] = {"tracks_per_shard": _PER_SHARD, "seconds_per_track": seconds_per_track}
    with progress.task("Sizing", 6, "parts") as task:
        whole = call_in_process(pack_without_audio, tracks=min(packed, most))
        row_bytes = whole.table_bytes // min(packed, most)
        parts = {
            "packing": _packing(whole, min(packed, most), files),
            "plans": _plans([size for size in sizes if size <= MOST]),
            "openings": _openings(sizes, row_bytes),
            "orders": _orders(sizes, shards, processes),
            "cluster": _clusters(workers, seconds_per_track),
            "codecs": _codecs(music, settings),
        }
        for name, part in parts.items():
            rows += part
            task.advance(note=name)
    names = {row.name for row in rows}
    return Result(
        report=Report(title="How large corpora may become", settings=settings, measurements=tuple(rows)),
        targets={name: Target(limit, at_most=True) for name, limit in LIMITS.items() if name in names},
    )


def _row(name: str, unit: str, *windows: float, cpu_ms: Sequence[float] = ()) -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows, cpu_windows=tuple(cpu_ms), ours=True)


def _windows(size: int) -> int:
    return _WINDOWS if size < MOST else 1


def _packing(whole: Packed, tracks: int, files: int) -> Rows:
    """Yield what packing takes beside decoding, for each track or shard."""
    yield _row("planning a track", "µs", 1e6 * whole.planning / tracks)
    yield _row("tables of a track", "µs", 1e6 * whole.tables / tracks)
    yield _row("row of tracks.csv", "bytes", whole.table_bytes / tracks)
    yield _row("shard in manifest.json", "bytes", whole.manifest_bytes / whole.shards)
    with tempfile.TemporaryDirectory() as scratch:
        for words, same_size in (("of its own size", False), ("of a size that others have", True)):
            seconds = [
                seconds_per_file(Path(scratch) / f"{same_size}-{turn}", files, same_size=same_size)
                for turn in range(_WINDOWS)
            ]
            yield _row(f"scanning a file {words}", "µs", *(1e6 * one for one in seconds))
        yield _row("SHA-256 in one process", "MB/s", *(hash_rate(Path(scratch)) for _ in range(_WINDOWS)))


def _plans(sizes: Sequence[int]) -> Rows:
    for size in sizes:
        found = [call_in_process(plan, tracks=size) for _ in range(_windows(size))]
        cpu = [1_000 * one.cpu / size for one in found]
        yield _row(f"plan of {size:,} tracks, time", "s", *(one.seconds for one in found), cpu_ms=cpu)
        yield _row(f"plan of {size:,} tracks, memory", "MiB", *(one.memory for one in found))


def _openings(sizes: Sequence[int], row_bytes: int) -> Rows:
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            many, few = make_sets(Path(scratch), size, row_bytes)
            found = [
                call_in_process(open_set, folder=str(many), small=str(few)) for _ in range(_windows(size))
            ]
        cpu = [1_000 * one.cpu / size for one in found]
        yield _row(f"opening {size:,} tracks, time", "s", *(one.seconds for one in found), cpu_ms=cpu)
        yield _row(f"opening {size:,} tracks, first batch", "s", *(one.first_batch for one in found))
        yield _row(f"opening {size:,} tracks, memory", "MiB", *(max(1, one.memory) for one in found))


def _orders(sizes: Sequence[int], shards: int, processes: int) -> Rows:
    for size in sizes:
        for words, window in (("", None), (" in windows of 64 shards", 64)):
            found = call_in_process(order, tracks=size, tracks_per_shard=_PER_SHARD, window=window)
            name = f"order of {size:,} tracks{words}"
            yield _row(f"{name}, batches", "batches/s", found.rate)
            yield _row(f"{name}, memory", "MiB", found.memory)
    shared = call_in_process(share, shards=shards, tracks_per_shard=_PER_SHARD, processes=processes)
    name = f"{shards:,} shards over {processes} processes"
    yield _row(f"{name}, fewest batches", "batches", shared.fewest)
    yield _row(f"{name}, most batches", "batches", shared.most)
    yield _row(f"{name}, tracks", "tracks", shared.tracks)
    yield _row(f"{name}, tracks taken", "tracks", shared.taken)
    yield _row(f"{name}, tracks taken twice", "tracks", shared.twice)
    yield _row(f"{name}, fewest shards read from", "shards", shared.fewest_shards)


def _clusters(workers: int, seconds_per_track: float) -> Rows:
    """Yield what became of the time of all workers."""
    for tracks in SIMULATED:
        for hours in HOURS:
            cluster = Cluster(
                workers=workers, seconds_per_track=seconds_per_track, hours_between_failures=hours
            )
            for size in SHARD_SIZES:
                runs = [simulate(cluster, tracks, size, seed) for seed in range(_SEEDS)]
                name = simulated(tracks, hours, size)
                yield _row(f"{name}, time", "h", *(run.hours for run in runs))
                for share_of in ("useful", "lost", "down", "idle"):
                    yield _row(f"{name}, {share_of}", "%", *(100 * getattr(run, share_of) for run in runs))
                yield _row(f"{name}, ending", "shards", *(run.ending for run in runs))


def simulated(tracks: int, hours: float, tracks_per_shard: int) -> str:
    """Return how the rows of a simulated run are called."""
    return f"{tracks:,} tracks, a failure every {hours:g} h, shards of {tracks_per_shard}"


def _codecs(music: Path | None, settings: dict[str, object]) -> Rows:
    """Yield the sizes by codec, and note in `settings` what they are of."""
    if music is None:
        return
    corpus = load_folder(music)
    for codec in CODECS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "shards"
            yield _row(f"1,000 hours in {codec}", "GB", gigabytes_per_1000_hours(corpus, folder, codec))
            packed = [track.seconds for track in read_tracks(folder)]
    settings |= {"clips": len(packed), "clip_hours": sum(packed) / 3600}


if __name__ == "__main__":
    main()
