"""Measures how large corpora may become, for the sizing tables of docs/scaling.md.

python -m benchmarks.sizing.run [--size N ...] [--music FOLDER] [--out FOLDER] [PART ...]

PART is one of packing, plans, openings, orders, cluster and codecs; by default, all are measured. What was
kept in FOLDER before, of other parts and other sizes, stays. --size is a number of tracks, by default one
million and ten million, which take 4 GiB. No more are planned, but a hundred million are opened in 7 GiB.
--music is a folder of audio that the sizes by codec are of.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import result
from benchmarks.process import call_in_process
from benchmarks.result import Result, Target
from benchmarks.run import HERE
from benchmarks.sizing.cluster import Cluster, simulate
from benchmarks.sizing.opening import (
    hash_rate,
    make_sets,
    open_set,
    seconds_per_file,
    store,
)
from benchmarks.sizing.order import order, share
from benchmarks.sizing.packing import pack_without_audio, plan
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.config import CODECS
from siamusic_fast.shards.pack import PackConfig

PARTS = ("packing", "plans", "openings", "orders", "cluster", "codecs")
SIZES = (1_000_000, 10_000_000)
MOST = 10_000_000
"""Most tracks that are planned: each takes some 300 bytes."""
LIMITS = {
    f"plan of {MOST:,} tracks, time": 60.0,
    f"plan of {MOST:,} tracks, memory": 4_096.0,
    f"opening {MOST:,} tracks, time": 30.0,
}
"""Seconds and MiB that the project allows."""
WORKERS = 1_000
SIMULATED, HOURS, SHARD_SIZES = (1_000_000, 100_000_000), (1.0, 24.0), (128, 512, 2_048, 8_192)
"""Tracks that the simulated cluster packs, hours between the failures of a worker, tracks in a shard."""
SECONDS_PER_TRACK = 1 / 32
"""Time of a worker of the simulated cluster for a track."""
SHARDS, PROCESSES = 10_000, 512
_TRACKS_IN_THEM = 64
_PACKED, _FILES = 200_000, 10_000
"""Tracks that are packed without their audio, and files that are scanned."""
_ROW_BYTES = 240
"""Bytes of a row of tracks.csv, as part packing finds them."""
_REPEATED = 3
_PER_SHARD = PackConfig.tracks_per_shard

Rows = Iterator[Measurement]


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--size", "sizes", type=int, multiple=True, default=SIZES)
@click.option("--music", type=click.Path(path_type=Path, file_okay=False), default=None)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=HERE)
def main(parts: tuple[str, ...], sizes: tuple[int, ...], music: Path | None, out: Path) -> None:
    """Measure this machine."""
    path = out / "sizing.json"
    for name in parts or PARTS:
        started = time.perf_counter()
        found = measure(name, sizes, music)
        result.keep(merged(result.read(path), found) if path.exists() else found, path, started)


def measure(part: str, sizes: Sequence[int] = SIZES, music: Path | None = None) -> Result:
    """Measure one of `PARTS`."""
    settings: dict[str, object] = {"tracks_per_shard": _PER_SHARD, "seconds_per_track": SECONDS_PER_TRACK}
    makers: dict[str, Callable[[], Rows]] = {
        "packing": _packing,
        "plans": lambda: _plans(sizes),
        "openings": lambda: _openings(sizes),
        "orders": lambda: _orders(sizes),
        "cluster": _clusters,
        "codecs": lambda: _codecs(music, settings),
    }
    rows = tuple(makers[part]())
    names = {row.name for row in rows}
    return Result(
        report=Report(title="How large corpora may become", settings=settings, measurements=rows),
        targets={name: Target(limit, at_most=True) for name, limit in LIMITS.items() if name in names},
    )


def merged(before: Result, found: Result) -> Result:
    """Return what was `found`, and what there was `before` under other names; ends if machines differ."""
    if before.report.machine != found.report.machine:
        sys.exit("what is kept there is of another machine, or of other versions: choose another --out.")
    names = {one.name for one in found.report.measurements}
    kept = [one for one in before.report.measurements if one.name not in names]
    report = replace(
        found.report,
        settings=before.report.settings | found.report.settings,
        measurements=(*kept, *found.report.measurements),
    )
    return Result(report=report, targets=before.targets | found.targets)


def _row(name: str, unit: str, *windows: float, cpu_ms: Sequence[float] = ()) -> Measurement:
    return Measurement(name=name, unit=unit, windows=windows, cpu_windows=tuple(cpu_ms), ours=True)


def _packing() -> Rows:
    """Yield what packing takes beside decoding, for each track or shard."""
    whole = call_in_process(pack_without_audio, tracks=_PACKED)
    cpu = [1e3 * whole.tables_cpu / _PACKED]
    yield _row("tables of a track", "µs", 1e6 * whole.tables / _PACKED, cpu_ms=cpu)
    yield _row("row of tracks.csv", "bytes", whole.table_bytes / _PACKED)
    yield _row("shard in manifest.json", "bytes", whole.manifest_bytes / whole.shards)
    with tempfile.TemporaryDirectory() as scratch:
        for words, same_size in (("of its own size", False), ("of a size that others have", True)):
            seconds = [
                seconds_per_file(Path(scratch) / f"{same_size}-{turn}", _FILES, same_size=same_size)
                for turn in range(_REPEATED)
            ]
            yield _row(f"scanning a file {words}", "µs", *(1e6 * one for one in seconds))
        yield _row("SHA-256 in one process", "MB/s", *(hash_rate(Path(scratch)) for _ in range(_REPEATED)))


def _plans(sizes: Sequence[int]) -> Rows:
    for size in sizes:
        if size <= MOST:
            found = call_in_process(plan, tracks=size)
            name = f"plan of {size:,} tracks"
            yield _row(f"{name}, time", "s", found.seconds, cpu_ms=[1_000 * found.cpu / size])
            yield _row(f"{name}, memory", "MiB", found.memory)


def _openings(sizes: Sequence[int]) -> Rows:
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            many, few = make_sets(Path(scratch), size, _ROW_BYTES)
            found = call_in_process(open_set, folder=str(many), small=str(few))
        name = f"opening {size:,} tracks"
        yield _row(f"{name}, time", "s", found.seconds, cpu_ms=[1_000 * found.cpu / size])
        yield _row(f"{name}, first batch", "s", found.first_batch)
        yield _row(f"{name}, memory", "MiB", max(1.0, found.memory))


def _orders(sizes: Sequence[int]) -> Rows:
    for size in sizes:
        for words, window in (("", None), (" in windows of 64 shards", 64)):
            found = call_in_process(order, tracks=size, tracks_per_shard=_PER_SHARD, window=window)
            name = f"order of {size:,} tracks{words}"
            yield _row(f"{name}, batches", "batches/s", found.rate)
            yield _row(f"{name}, memory", "MiB", found.memory)
    shared = call_in_process(share, shards=SHARDS, tracks_per_shard=_TRACKS_IN_THEM, processes=PROCESSES)
    name = f"{SHARDS:,} shards over {PROCESSES} processes"
    yield _row(f"{name}, fewest batches", "batches", shared.fewest)
    yield _row(f"{name}, most batches", "batches", shared.most)
    yield _row(f"{name}, tracks", "tracks", shared.tracks)
    yield _row(f"{name}, tracks taken", "tracks", shared.taken)
    yield _row(f"{name}, tracks taken twice", "tracks", shared.twice)
    yield _row(f"{name}, fewest shards read from", "shards", shared.fewest_shards)


def _clusters() -> Rows:
    """Yield what became of the time of all workers."""
    for tracks in SIMULATED:
        for hours in HOURS:
            cluster = Cluster(
                workers=WORKERS, seconds_per_track=SECONDS_PER_TRACK, hours_between_failures=hours
            )
            for size in SHARD_SIZES:
                runs = [simulate(cluster, tracks, size, seed) for seed in range(_REPEATED)]
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
            found = store(corpus, Path(scratch) / "shards", codec)
        settings |= {"clips": found.clips, "clip_hours": found.hours}
        yield _row(f"1,000 hours in {codec}", "GB", found.per_1000_hours)


if __name__ == "__main__":
    main()
