"""The paper's loader at its best, and whether it makes what our loaders make."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import ProcessesClock
from benchmarks.paper_loader import AUGS, needed, paper_loader, write_arrays
from siamusic_fast.bench.stages import Setup
from siamusic_fast.bench.timing import Timing, Workload, measure_in_turns
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

_AHEAD_PER_PROCESS = 3
"""Batches that each process of a `DataLoader` makes ahead: two that wait, and one in the making."""
_ARRAYS = 128
"""Tracks, at least, that are written as .npy files: 340 MB of clips of 30 s."""
_TRIAL = Timing(windows=3, seconds=0.3)
"""How long each number of processes is tried."""
_COMPARED_PAIRS, _MIN_COMPARED_BATCHES = 512, 8
_TOLERANCE = 0.03
"""Distance that statistics may have, chance aside, where 1 is the variance of the features."""
_PAPER_PAIRS, _PAPER_BATCHES, _PAPER_TOLERANCE = 8, 64, 0.15
"""Batches of the paper's loader that are compared. They are small and many, as it draws once for a batch; and
it reads `_ARRAYS` tracks, where ours reads all.
"""
_VOCODER_PAIRS, _VOCODER_BATCHES, _VOCODER_TOLERANCE = 4, 32, 0.4
"""The same for audio augmentations, of which it makes few pairs a second. Where frames overlap by half, its
phase vocoder takes 2 to 3 dB off noise, which is 0.3 of the standard deviation of the clips that are made to
measure with. What is not augmented is farther away: between our views of those clips, the mean square is 0.7.
"""
_STANDARD_ERRORS = 4
"""Distance that chance explains: of what is alike, fewer than 1 in 1,000 are farther apart."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Batches that are compared with those of another loader."""

    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Opens the loader that makes them."""
    batches: int
    tolerance: float = _TOLERANCE
    """Distance that statistics may have, chance aside, where 1 is the variance of the features."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A loader that ours is compared with."""

    workload: Workload
    sample: Sample


def papers_peer(
    setup: Setup, aug: str, folder: Path, timing: Timing, progress: Progress = SILENT
) -> Peer | str:
    """Return the loader of the paper's code, on the CPU, with arrays in `folder`; or why there is none."""
    if aug not in AUGS:
        return f"the paper's loader does not augment with {aug}"
    mel, batch_size = setup.frontend.mel, setup.batch_size
    if setup.shard_set.sample_rate != mel.sample_rate:
        return "the paper's loader was not measured: it does not resample"
    count = max(_ARRAYS, batch_size)
    paths = write_arrays(setup.plan.tracks, setup.frontend, folder, count, min_samples=needed(mel, aug))
    if not paths:
        return f"the paper's loader was not measured: all tracks are too short for its {aug} augmentations"

    def opened(batch_size: int, procs: int) -> AbstractContextManager[Iterable[object]]:
        return paper_loader(paths, setup.frontend, aug=aug, batch_size=batch_size, procs=procs)

    def workload(procs: int) -> Workload:
        return Workload(
            name=f"paper: {aug}",
            items=batch_size,
            open=partial(opened, batch_size, procs),
            max_ahead=_AHEAD_PER_PROCESS * procs,
            setting=f"{procs} {'process' if procs == 1 else 'processes'}",
        )

    # One process reads faster than two cores compute.
    candidates = [workload(procs) for procs in sorted({1, max(1, cores() // 2)})]
    pairs, batches, tolerance = (
        (_VOCODER_PAIRS, _VOCODER_BATCHES, _VOCODER_TOLERANCE)
        if aug == "audio"
        else (_PAPER_PAIRS, _PAPER_BATCHES, _PAPER_TOLERANCE)
    )
    sample = Sample(open=partial(opened, pairs, procs=1), batches=batches, tolerance=tolerance)
    return Peer(workload=fastest(candidates, timing, progress), sample=sample)


def fastest(candidates: Sequence[Workload], timing: Timing, progress: Progress = SILENT) -> Workload:
    """Return the fastest of a short trial, in which no window is longer than those of `timing`."""
    if len(candidates) == 1:
        return candidates[0]
    trial = Timing(windows=min(_TRIAL.windows, timing.windows), seconds=min(_TRIAL.seconds, timing.seconds))
    rates = [
        measure_in_turns(
            [one],
            trial,
            torch.device("cpu"),
            title=f"Trying {one.name}, {one.setting}",
            progress=progress,
            clock=ProcessesClock(),
        )[0].median
        for one in candidates
    ]
    return candidates[rates.index(max(rates))]


def sample_of(workload: Workload) -> Sample:
    """Return batches of a loader that are compared with those of a peer."""
    batches = max(_MIN_COMPARED_BATCHES, math.ceil(_COMPARED_PAIRS / workload.items))
    return Sample(open=workload.open, batches=batches)


def difference(ours: Sample, theirs: Sample) -> str:
    """Return in what the batches of a peer differ from ours, or nothing; open each loader for a while."""
    return unlike(_statistics(ours), _statistics(theirs), theirs.tolerance)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What is compared of the views that a loader makes."""

    shape: tuple[int, ...]
    """Shape of a view."""
    moments: dict[str, list[float]]
    """Moments of every batch by name. How far the views of a pair are apart tells what was augmented: they
    are of one crop, so that without any augmentation they are equal.
    """


def _statistics(sample: Sample) -> Statistics:
    found = []
    with sample.open() as batches:
        views: Any
        for views in islice(chain.from_iterable(repeat(batches)), sample.batches):
            view_1, view_2 = (view.float().cpu() for view in views)
            found.append(_moments(view_1, view_2))
    moments = {name: [one[name] for one in found] for name in found[0]}
    return Statistics(shape=tuple(view_1.shape[1:]), moments=moments)


def _moments(view_1: Tensor, view_2: Tensor) -> dict[str, float]:
    both = torch.cat([view_1, view_2])
    return {
        "mean": float(both.mean()),
        "mean square": float(both.square().mean()),
        "mean square between the views": float((view_1 - view_2).square().mean()),
    }


def unlike(ours: Statistics, theirs: Statistics, tolerance: float) -> str:
    """Return in what they differ by more than the `tolerance` and what chance explains, or nothing."""
    if ours.shape != theirs.shape:
        return f"makes {theirs.shape}, not {ours.shape}"
    for name, values in ours.moments.items():
        others = theirs.moments[name]
        mean, other = statistics.fmean(values), statistics.fmean(others)
        error = math.hypot(_standard_error(values), _standard_error(others))
        if not abs(mean - other) <= tolerance + _STANDARD_ERRORS * error:
            return f"has a {name} of {other:.3f}, not {mean:.3f}"
    return ""


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
