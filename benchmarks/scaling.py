"""How rates, start-up and memory grow: with threads and batch sizes, with shards and with tracks."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.opening import Opened, open_in_process, repeated_shards
from benchmarks.result import Result, Target, verdict
from siamusic_fast.bench.corpus import make_shards
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.bench.stages import Setup, loader_workload, prepare
from siamusic_fast.bench.timing import Timing, Workload, measure_in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

_BATCHES = (16, 64, 256)
_BATCHES_AN_EPOCH = 8
"""Minimum: with few batches, what does not fill one and is dropped would count."""
_TRACKS = (1_000, 10_000, 25_000, 100_000, 1_000_000)
_SHARDS = (1, 10, 100, 1_000)
_TRACKS_FOR_SHARDS = 10_000
_PER_SHARD = 512
_RUN = 2_048
"""Tracks that run with several threads and batch sizes."""
_DEALT = 1_000
"""Tracks that are dealt to ever more shards, to measure the rate."""
_DEALT_SECONDS = 1.0
"""Length of a crop, and half of that of a track: short, as the same audio is written several times."""
_OPENINGS = 3
"""Processes that open each set."""
_BATCHES_OF_A_LONG_RUN = 10_000

_NO_FASTER = 1.2
"""What N times as many tracks, shards, threads or pairs may cost, divided by N."""
_KEPT = 0.9
"""Share of the rate that ten times the shards must leave."""
_START_UP, _FIRST_BATCH = "start-up", "first batch"
_OPENED, _RUNNING = "memory of opening", "memory of running"
_ALLOWED = {(_START_UP, 25_000): 0.5, (_START_UP, 1_000_000): 5.0, (_OPENED, 1_000_000): 1_024.0}
"""Seconds and MiB that the project allows by what is measured and the number of tracks; fma_medium has
25,000.
"""
_FLAT = 16.0
"""MiB that a long run may add."""
_NOWHERE = "start-up and memory nowhere grow faster than what makes them grow"


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A set to open, and how."""

    of: str
    """What grows: tracks, shards, threads or pairs."""
    tracks: int
    per_shard: int
    seconds: float = 0.1
    """Of a crop; of each track, twice as many."""
    threads: int | None = None
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """What opening a set took."""

    of: str
    count: int
    """Of what grows."""
    rows: tuple[Measurement, ...]
    """Start-up, first batch, and memory while opening and when running."""
    targets: dict[str, Target]
    """Targets by the name of a row."""


def measure(
    setup: Setup,
    aug: str,
    timing: Timing,
    *,
    max_tracks: int = _TRACKS[-1],
    max_shards: int = _SHARDS[-1],
    long_run: int = _BATCHES_OF_A_LONG_RUN,
    progress: Progress = SILENT,
) -> Result:
    """Measure the loader with 1 to all threads, several batch sizes and more and more shards, and opening.

    The sets that are opened are a few tracks under many names, since opening reads no audio; up to
    `max_tracks` and `max_shards`. Time and memory are what a process takes for it that has opened a small
    set before. From each size to the next, neither may grow faster than what grows, a fifth left for chance.
    That a loader adds no memory while it runs is looked at over the batches of a `long_run`.
    """
    device = setup.device
    threads = sorted({1, *(2**power for power in range(1, cores().bit_length())), cores()})
    shards = [count for count in _SHARDS if count <= max_shards]
    found, ratios = _rates(setup, aug, threads, timing, progress)
    dealt = _dealt(shards, setup, aug, timing, progress)
    found += dealt
    ratios += _steps(dealt)
    targets = {ratio.name: Target(_KEPT) for ratio in _steps(dealt)}
    groups = _sizes([count for count in _TRACKS if count <= max_tracks], shards, threads)
    notes = []
    with progress.task("Opening ever larger sets", sum(map(len, groups)), "sets") as task:
        for sizes in groups:
            openings = []
            for size in sizes:
                openings.append(_opening(size, aug, device))
                task.advance(note=openings[-1].rows[0].name)
            found += [row for opening in openings for row in opening.rows]
            for opening in openings:
                targets |= opening.targets
            grown = [_growth(*pair) for pair in pairwise(openings)]
            ratios += [ratio for step in grown for ratio in step]
            targets |= {ratio.name: target for step in grown for ratio, target in step.items()}
            notes += _too_fast(openings, grown)
    found.append(_long_run(long_run, aug, device))
    targets[found[-1].name] = Target(_FLAT, at_most=True)
    report = Report(
        title=f"DALI loader on {device.type}, {aug}: how it grows",
        settings={"aug": aug, **setup.settings(timing)},
        measurements=tuple(found),
        ratios=tuple(ratios),
        notes=(*(notes or [_NOWHERE]), *_left_out(setup.shard_set)),
    )
    return Result(report=report, targets=targets)


def _rates(
    setup: Setup, aug: str, threads: Sequence[int], timing: Timing, progress: Progress
) -> tuple[list[Measurement], list[Ratio]]:
    """Return the rates with so many threads and in batches of all sizes that fit, and the steps of each."""
    workloads = [
        _named(replace(setup, loader_threads=count), aug, _counted(count, "threads")) for count in threads
    ] + [
        _named(replace(setup, batch_size=size), aug, f"batches of {size}")
        for size in _BATCHES
        if _fits(size, setup.shard_set)
    ]
    found = measure_in_turns(
        workloads, timing, setup.device, title="Threads and batch sizes", progress=progress
    )
    return found, [*_steps(found[: len(threads)]), *_steps(found[len(threads) :])]


def _fits(batch_size: int, shard_set: ShardSet) -> bool:
    return _BATCHES_AN_EPOCH * batch_size <= shard_set.tracks(["training"])


def _left_out(shard_set: ShardSet) -> list[str]:
    """Return in words which batch sizes are not measured."""
    return [
        f"batches of {size} were left out: the {shard_set.tracks(['training']):,} tracks do not fill "
        f"{_BATCHES_AN_EPOCH} of them"
        for size in _BATCHES
        if not _fits(size, shard_set)
    ]


def _dealt(
    shards: Sequence[int], setup: Setup, aug: str, timing: Timing, progress: Progress
) -> list[Measurement]:
    """Return the rates of the same tracks in 1 and in more shards."""
    with ExitStack() as stack:
        workloads = []
        for count in shards:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = make_shards(
                folder, _DEALT, seconds=2 * _DEALT_SECONDS, tracks_per_shard=-(-_DEALT // count)
            )
            short = prepare(
                made,
                batch_size=min(setup.batch_size, _DEALT // _BATCHES_AN_EPOCH),
                device=setup.device,
                mel=MelConfig(seconds=_DEALT_SECONDS),
                loader_threads=setup.loader_threads,
            )
            what = f"{_counted(len(made.splits['training']), 'shards')} of {_DEALT_SECONDS:g} s crops"
            workloads.append(_named(short, aug, what))
        return measure_in_turns(
            workloads, timing, setup.device, title="More and more shards", progress=progress
        )


def _named(setup: Setup, aug: str, what: str) -> Workload:
    return replace(loader_workload(setup, aug), name=f"DALI: {what}", extends="")


def _steps(rows: Sequence[Measurement]) -> list[Ratio]:
    """Return each of `rows` over the one before."""
    return [Ratio.of(later, earlier) for earlier, later in pairwise(rows)]


def _sizes(tracks: Sequence[int], shards: Sequence[int], threads: Sequence[int]) -> list[list[_Size]]:
    """Return the sets to open: within a list, one thing grows."""
    run = _Size(of="pairs", tracks=_RUN, per_shard=_RUN // 16, seconds=MelConfig.seconds)
    return [
        [_Size(of="tracks", tracks=count, per_shard=_PER_SHARD) for count in tracks],
        [
            _Size(of="shards", tracks=_TRACKS_FOR_SHARDS, per_shard=_TRACKS_FOR_SHARDS // count)
            for count in shards
        ],
        [replace(run, of="threads", threads=count) for count in threads],
        [replace(run, of="pairs", batch_size=size) for size in _BATCHES],
    ]


def _opening(size: _Size, aug: str, device: torch.device) -> _Opening:
    """Return the time until a loader over the set is open, and the memory of opening and running it."""
    made, runs = _runs(size, aug, device)
    counts = {
        "tracks": made.tracks(["training"]),
        "shards": len(made.splits["training"]),
        "threads": size.threads or cores(),
        "pairs": size.batch_size,
    }
    what = f"{_counted(counts['tracks'], 'tracks')} in {_counted(counts['shards'], 'shards')}"
    if size.of in ("threads", "pairs"):
        what += f", {_counted(counts['threads'], 'threads')}, batches of {size.batch_size}"
    windows = {
        (_START_UP, "s"): [run.start_up for run in runs],
        (_FIRST_BATCH, "s"): [run.first_batch for run in runs],
        (_OPENED, "MiB"): [run.opening for run in runs],
        (_RUNNING, "MiB"): [run.running for run in runs],
    }
    rows = [
        Measurement(name=f"{kind}: {what}", unit=unit, windows=tuple(values), ours=True)
        for (kind, unit), values in windows.items()
    ]
    targets = {
        f"{kind}: {what}": Target(_ALLOWED[kind, size.tracks], at_most=True)
        for kind, _ in windows
        if (kind, size.tracks) in _ALLOWED
    }
    return _Opening(of=size.of, count=counts[size.of], rows=tuple(rows), targets=targets)


def _long_run(batches: int, aug: str, device: torch.device) -> Measurement:
    """Return the memory that a loader adds while it makes so many batches, small ones of short crops."""
    size = _Size(of="batches", tracks=_RUN, per_shard=_PER_SHARD, batch_size=_BATCHES[0])
    _, runs = _runs(size, aug, device, batches=batches)
    return Measurement(
        name=f"memory added by {_counted(batches, 'batches')}",
        unit="MiB",
        windows=tuple(run.grown for run in runs),
        ours=True,
    )


def _runs(size: _Size, aug: str, device: torch.device, batches: int = 0) -> tuple[ShardSet, list[Opened]]:
    """Return the set that was made, and what each process found that opened it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        made = repeated_shards(folder, size.tracks, size.per_shard, seconds=2 * size.seconds)
        runs = [
            open_in_process(
                folder,
                seconds=size.seconds,
                aug=aug,
                device=str(device),
                loader_threads=size.threads or cores(),
                batch_size=size.batch_size,
                batches=batches,
            )
            for _ in range(_OPENINGS)
        ]
    return made, runs


def _growth(smaller: _Opening, larger: _Opening) -> dict[Ratio, Target]:
    """Return how many times as much the larger set took, and how many times as much it may."""
    target = Target(round(_NO_FASTER * larger.count / smaller.count, 1), at_most=True)
    pairs = zip(larger.rows, smaller.rows, strict=True)
    return {Ratio.of(after, before): target for after, before in pairs}


def _too_fast(openings: Sequence[_Opening], grown: Sequence[dict[Ratio, Target]]) -> list[str]:
    """Return, for each row of the `openings`, the first step in which it grew faster than it may."""
    found = []
    for what, *ratios in zip((_START_UP, _FIRST_BATCH, _OPENED, _RUNNING), *grown, strict=True):
        for (smaller, larger), ratio, allowed in zip(pairwise(openings), ratios, grown, strict=True):
            if verdict(ratio, allowed[ratio]) == "not reached":
                found.append(
                    f"{what} grows faster than it should from {_counted(smaller.count, smaller.of)} to "
                    f"{larger.count:,}: {ratio.median:.2g} times"
                )
                break
    return found


def _counted(count: int, of: str) -> str:
    return f"{count:,} {of if count != 1 else of.removesuffix('s')}"
