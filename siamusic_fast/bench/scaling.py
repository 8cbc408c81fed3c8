"""How rates, start-up and memory grow: with threads and batch sizes, with shards and with tracks."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.opening import Opened, look_at, repeated_shards
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.bench.stages import Setup, dali_loader, prepare
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader_settings import LoaderSettings
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

_BATCHES = (16, 64, 256)
_BATCHES_AN_EPOCH = 8
"""At least: of few, what does not fill a batch and is dropped would count."""
_TRACKS = (1_000, 10_000, 25_000, 100_000, 1_000_000)
_SHARDS = (1, 10, 100, 1_000)
_TRACKS_FOR_SHARDS = 10_000
_PER_SHARD = 512
_RUN = 2_048
"""Tracks that run with several threads and batch sizes."""
_DEALT = 1_000
"""Tracks that are dealt to ever more shards, to measure the rate."""
_DEALT_SECONDS = 1.0
"""Of each, and of a crop: short, as the same audio is written several times."""
_OPENINGS = 3
"""Processes that open each set."""
_BATCHES_OF_A_LONG_RUN = 10_000

_NO_FASTER = 1.2
"""What N times the tracks, shards, threads or pairs may cost, over N times as much."""
_KEPT = 0.9
"""Share of the rate that ten times the shards must leave."""
_START_UP, _FIRST_BATCH = "start-up", "first batch"
_OPENED, _RUNNING = "memory of opening", "memory of running"
_ALLOWED = {(_START_UP, 25_000): 0.5, (_START_UP, 1_000_000): 5.0, (_OPENED, 1_000_000): 1_024.0}
"""Seconds and MiB that the project allows, by what is measured and the number of tracks; the first is the
size of fma_medium.
"""
_FLAT = 16.0
"""MiB that a long run may add."""
_NOWHERE = "beyond the spread, start-up and memory grow nowhere faster than what makes them grow"


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


def measure(
    shard_set: ShardSet,
    *,
    recipe: str,
    batch_size: int,
    device: torch.device,
    timing: Timing,
    most_tracks: int = _TRACKS[-1],
    most_shards: int = _SHARDS[-1],
    long_run: int = _BATCHES_OF_A_LONG_RUN,
    progress: Progress = SILENT,
) -> Report:
    """Measure the loader with 1 to all threads, several batch sizes and more and more shards, and opening.

    The sets that are opened are a few tracks under many names, since opening reads no audio; up to
    `most_tracks` and `most_shards`. Time and memory are what a process takes for it that has opened a small
    set before. From each size to the next, neither may grow faster than what grows, a fifth left for chance.
    That a loader adds no memory while it runs is looked at over the batches of a `long_run`.
    """
    setup = prepare(shard_set, batch_size=batch_size, device=device, progress=progress)
    threads = sorted({1, *(2**power for power in range(1, cores().bit_length())), cores()})
    shards = [count for count in _SHARDS if count <= most_shards]
    found, ratios = _rates(setup, recipe, threads, timing, progress)
    dealt = _dealt(shards, setup, recipe, timing, progress)
    found += dealt
    ratios += _steps(dealt, _KEPT)
    groups = _sizes([count for count in _TRACKS if count <= most_tracks], shards, threads)
    notes = []
    with progress.task("Opening ever larger sets", sum(map(len, groups)), "sets") as task:
        for sizes in groups:
            openings = []
            for size in sizes:
                openings.append(_opening(size, recipe, device))
                task.advance(note=openings[-1].rows[0].name)
            found += [row for opening in openings for row in opening.rows]
            grown = [_growth(*pair) for pair in pairwise(openings)]
            ratios += [ratio for step in grown for ratio in step]
            notes += _too_fast(openings, grown)
    found.append(_long_run(long_run, recipe, device))
    return Report(
        title=f"Scaling on {device.type}, recipe {recipe}",
        settings={
            "shards": shard_set.source,
            "codec": shard_set.codec,
            "recipe": recipe,
            "device": device.type,
            "batch_size": batch_size,
            "windows": timing.windows,
            "window_seconds": timing.seconds,
        },
        measurements=tuple(found),
        ratios=tuple(ratios),
        notes=(*(notes or [_NOWHERE]), *_left_out(shard_set)),
    )


def _rates(
    setup: Setup, recipe: str, threads: Sequence[int], timing: Timing, progress: Progress
) -> tuple[list[Measurement], list[Ratio]]:
    """Return the rates with so many threads and in batches of all sizes that fit, and the steps of each."""
    shard_set, config = setup.shard_set, setup.config
    contenders = [
        _named(shard_set, replace(config, loader_threads=count), recipe, _counted(count, "threads"))
        for count in threads
    ] + [
        _named(shard_set, replace(config, batch_size=size), recipe, f"batches of {size}")
        for size in _BATCHES
        if _fits(size, shard_set)
    ]
    found = in_turns(contenders, timing, setup.device, title="Threads and batch sizes", progress=progress)
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
    shards: Sequence[int], setup: Setup, recipe: str, timing: Timing, progress: Progress
) -> list[Measurement]:
    """Return the rates of the same tracks in 1 and in more shards."""
    short = replace(
        setup.config,
        frontend=replace(setup.frontend, mel=MelConfig(seconds=_DEALT_SECONDS)),
        batch_size=min(setup.plan.batch_size, _DEALT // _BATCHES_AN_EPOCH),
    )
    with ExitStack() as stack:
        contenders = []
        for count in shards:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shards"
            made = make_shards(folder, _DEALT, seconds=2 * _DEALT_SECONDS, per_shard=-(-_DEALT // count))
            what = f"{_counted(len(made.splits['training']), 'shards')} of {_DEALT_SECONDS:g} s crops"
            contenders.append(_named(made, short, recipe, what))
        return in_turns(contenders, timing, setup.device, title="More and more shards", progress=progress)


def _named(shard_set: ShardSet, config: LoaderSettings, recipe: str, what: str) -> Contender:
    return replace(dali_loader(shard_set, config, recipe), name=f"DALI: {what}", target=None)


def _steps(rows: Sequence[Measurement], target: float | None = None) -> list[Ratio]:
    """Return each of `rows` over the one before."""
    return [Ratio.of(later, earlier, target) for earlier, later in pairwise(rows)]


def _sizes(tracks: Sequence[int], shards: Sequence[int], threads: Sequence[int]) -> list[list[_Size]]:
    """Return the sets to open: those of each list differ in one thing, which grows."""
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


def _opening(size: _Size, recipe: str, device: torch.device) -> _Opening:
    """Return the time until a loader over the set is open, and the memory of opening and running it."""
    made, runs = _looks(size, recipe, device)
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
        Measurement(
            name=f"{kind}: {what}",
            unit=unit,
            windows=tuple(values),
            ours=True,
            target=_ALLOWED.get((kind, size.tracks)),
            at_most=True,
        )
        for (kind, unit), values in windows.items()
    ]
    return _Opening(of=size.of, count=counts[size.of], rows=tuple(rows))


def _long_run(batches: int, recipe: str, device: torch.device) -> Measurement:
    """Return the memory that a loader adds while it makes so many batches, small ones of short crops."""
    size = _Size(of="batches", tracks=_RUN, per_shard=_PER_SHARD, batch_size=_BATCHES[0])
    _, runs = _looks(size, recipe, device, batches=batches)
    return Measurement(
        name=f"memory added by {_counted(batches, 'batches')}",
        unit="MiB",
        windows=tuple(run.grown for run in runs),
        ours=True,
        target=_FLAT,
        at_most=True,
    )


def _looks(size: _Size, recipe: str, device: torch.device, batches: int = 0) -> tuple[ShardSet, list[Opened]]:
    """Return the set that was made, and what each process found that opened it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        made = repeated_shards(folder, size.tracks, size.per_shard, seconds=2 * size.seconds)
        runs = [
            look_at(
                folder,
                seconds=size.seconds,
                recipe=recipe,
                device=str(device),
                loader_threads=size.threads or cores(),
                batch_size=size.batch_size,
                batches=batches,
            )
            for _ in range(_OPENINGS)
        ]
    return made, runs


def _growth(smaller: _Opening, larger: _Opening) -> list[Ratio]:
    """Return how much more the larger set took, and the most that it may."""
    target = round(_NO_FASTER * larger.count / smaller.count, 1)
    pairs = zip(larger.rows, smaller.rows, strict=True)
    return [replace(Ratio.of(after, before, target), at_most=True) for after, before in pairs]


def _too_fast(openings: Sequence[_Opening], grown: Sequence[Sequence[Ratio]]) -> list[str]:
    """Return, for each row of the `openings`, the first step in which it grew faster than it may."""
    found = []
    for what, *ratios in zip((_START_UP, _FIRST_BATCH, _OPENED, _RUNNING), *grown, strict=True):
        for (smaller, larger), ratio in zip(pairwise(openings), ratios, strict=True):
            if ratio.verdict == "not reached":
                found.append(
                    f"{what} grows faster than it should from {_counted(smaller.count, smaller.of)} to "
                    f"{larger.count:,}: {ratio.median:.2g} times"
                )
                break
    return found


def _counted(count: int, of: str) -> str:
    return f"{count:,} {of if count != 1 else of.removesuffix('s')}"
