"""What the loaders are compared with: at its best, and only if it makes what they make."""

import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamusic_fast.bench.paper import RECIPES_OF_PAPER, needed, paper_loader, write_arrays
from siamusic_fast.bench.report import number
from siamusic_fast.bench.stages import AHEAD, Setup
from siamusic_fast.bench.timing import Contender, Sample, Timing, alone, endless
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

_PER_WORKER = 3
"""Batches that each worker of a `DataLoader` makes in advance: two that wait, and one in the making."""
_ARRAYS = 128
"""Tracks, or a batch, that are written for the peer that reads .npy files: 340 MB of clips of 30 s."""
_TRIAL = Timing(windows=3, seconds=0.3)
"""Of each setting of a peer, to find its best."""
_WORTH = 0.5
"""Of the best rate so far: a setting that warms up more slowly is tried no longer."""
_COMPARED = 512
"""Pairs, at least."""
_FEWEST_COMPARED = 8
"""Batches, at least."""
_ALIKE = 0.03
"""How far what is compared may be apart, chance aside, where 1 is the variance of the features."""
_SMALL, _VERY_SMALL = 8, 4
"""Pairs in the batches of the paper's way that are compared, many as it draws once for each. Of so few, some
are mixed with themselves. Recipe audio makes few pairs a second.
"""
_MANY, _FEWER = 64, 32
"""How many of those."""
_ITS_TRACKS = 0.15
"""How far the paper's way may be apart: it reads `_ARRAYS` tracks, where we read all."""
_VOCODED = 0.4
"""The same for recipe audio: where frames overlap by half, its phase vocoder takes 2 to 3 dB off noise, which
is 0.3 of the deviation of the clips that are made to measure with. What is not augmented is farther away:
between our views of those clips, the mean square is 0.7.
"""
_STANDARD_ERRORS = 4
"""That chance explains: of what is alike, fewer than 1 in 1,000 are farther apart."""


def fastest(
    candidates: Sequence[Contender], device: torch.device, timing: Timing, progress: Progress = SILENT
) -> Contender:
    """Return the fastest of a short trial, in which no window is longer than those of `timing`.

    The last come first: with many workers they mostly are the fastest, and make short work of the others.
    """
    if len(candidates) == 1:
        return candidates[0]
    trial = Timing(windows=min(_TRIAL.windows, timing.windows), seconds=min(_TRIAL.seconds, timing.seconds))
    best, highest = candidates[-1], 0.0
    with progress.task("Looking for a peer's best settings", len(candidates), "settings") as task:
        for one in reversed(candidates):
            rate = alone(one, trial, device, worth=_WORTH * highest)
            if rate > highest:
                best, highest = one, rate
            task.advance(note=f"{one.name}, {one.setting}: {number(rate)} {one.unit}")
    return best


def torch_loader(setup: Setup, recipe: str) -> Contender:
    """Return the torch backend with all cores, whatever the DALI loader has."""
    config = replace(setup.config, backend="torch", loader_threads=cores())
    computing = "reading, whole batches on the GPU" if setup.device.type == "cuda" else "on the CPU"
    return Contender(
        name=f"torch: recipe {recipe}",
        items=config.batch_size,
        open=lambda: TwoViewLoader(setup.shard_set, aug=recipe, **vars(config)),
        ahead=AHEAD,
        setting=f"{cores()} threads {computing}",
    )


def papers_loader(
    setup: Setup,
    recipe: str,
    folder: Path,
    timing: Timing,
    progress: Progress = SILENT,
) -> Contender | str:
    """Return the way of the paper's code, on the CPU and with arrays in `folder`; or why there is none."""
    if recipe not in RECIPES_OF_PAPER:
        return f"the paper's way has no recipe {recipe}"
    if setup.shard_set.sample_rate != setup.mel.sample_rate:
        return "the paper's way was not measured: it does not resample"
    tracks, frontend, batch_size = setup.plan.tracks, setup.frontend, setup.plan.batch_size
    paths = write_arrays(
        tracks, frontend, folder, max(_ARRAYS, batch_size), shortest=needed(setup.mel, recipe)
    )
    if not paths:
        return f"the paper's way was not measured: all tracks are too short for its recipe {recipe}"

    def opened(batch_size: int, procs: int) -> AbstractContextManager[Iterable[object]]:
        return paper_loader(paths, frontend, recipe=recipe, batch_size=batch_size, procs=procs)

    vocoded = recipe == "audio"
    sample = Sample(
        open=partial(opened, _VERY_SMALL if vocoded else _SMALL, procs=1),
        batches=_FEWER if vocoded else _MANY,
        tolerance=_VOCODED if vocoded else _ITS_TRACKS,
    )

    def contender(procs: int) -> Contender:
        return Contender(
            name=f"paper's way: recipe {recipe}",
            items=batch_size,
            open=partial(opened, batch_size, procs),
            ahead=_PER_WORKER * procs,
            setting=f"{procs} workers",
            sample=sample,
        )

    # One worker reads faster than two cores compute.
    candidates = [contender(procs) for procs in sorted({1, max(1, cores() // 2)})]
    return fastest(candidates, torch.device("cpu"), timing, progress)


def alike(ours: Contender, rivals: Sequence[Contender]) -> tuple[list[Contender], tuple[str, ...]]:
    """Return those of the `rivals` that make what we make, and notes on the others; open each for a while."""
    if not rivals:
        return [], ()
    made = _statistics(_sample(ours))
    kept, notes = [], []
    for rival in rivals:
        sample = _sample(rival)
        reason = _unlike(made, _statistics(sample), sample.tolerance)
        if reason:
            notes.append(f"{rival.name} is not measured: it {reason}")
        else:
            kept.append(rival)
    return kept, tuple(notes)


def _sample(contender: Contender) -> Sample:
    """Return the sample of a contender, by default of many pairs in batches of its own size."""
    batches = max(_FEWEST_COMPARED, math.ceil(_COMPARED / contender.items))
    return contender.sample or Sample(open=contender.open, batches=batches, tolerance=_ALIKE)


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """What is compared of the views that a loader makes."""

    shape: tuple[int, ...]
    """Of a view."""
    moments: dict[str, list[float]]
    """By name, those of every batch. How far the views of a pair are apart tells what was augmented: they are
    of one crop, so that without any augmentation they are equal.
    """


def _statistics(sample: Sample) -> _Statistics:
    found = []
    with sample.open() as batches:
        views: Any
        for views in islice(endless(batches), sample.batches):
            view_1, view_2 = (view.float().cpu() for view in views)
            found.append(_moments(view_1, view_2))
    moments = {name: [one[name] for one in found] for name in found[0]}
    return _Statistics(shape=tuple(view_1.shape[1:]), moments=moments)


def _moments(view_1: Tensor, view_2: Tensor) -> dict[str, float]:
    both = torch.cat([view_1, view_2])
    return {
        "mean": float(both.mean()),
        "mean square": float(both.square().mean()),
        "mean square between the views": float((view_1 - view_2).square().mean()),
    }


def _unlike(ours: _Statistics, theirs: _Statistics, tolerance: float) -> str:
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
