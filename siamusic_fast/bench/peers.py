"""What the loaders are compared with: at its best, and only if it makes what they make."""

import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamusic_fast.bench.paper import RECIPES_OF_PAPER, needed, paper_loader, write_arrays
from siamusic_fast.bench.timing import Contender, Timing, endless, in_turns
from siamusic_fast.pipelines.options import LoaderOptions, Setup
from siamusic_fast.pipelines.recipes import RECIPES
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.pool import cores

TORCH_AHEAD = 3
"""Batches that each worker of torch makes in advance: two that wait, and one in the making."""
_ARRAYS = 128
"""Tracks, or a batch, that are written for the peer that reads .npy files: 340 MB of clips of 30 s."""
_TRIAL = Timing(windows=3, seconds=0.3)
"""Of each setting of a peer, to find its best."""
_COMPARED = 512
"""Pairs, at least."""
_FEWEST_COMPARED = 8
"""Batches, at least: the paper's way draws once for each."""
_ALIKE = 0.03
"""How far what is compared may be apart, chance aside, where 1 is the variance of the features."""
_VOCODED = 0.4
"""The same for recipe audio in the paper's way: where frames overlap by half, its phase vocoder takes 2 to 3
dB off noise, which is 0.3 of the deviation of the clips that are made to measure with. What is not augmented
is farther away: between our views of those clips, the mean square is 0.7.
"""
_STANDARD_ERRORS = 3


def fastest(
    candidates: Sequence[Contender], device: torch.device, timing: Timing, progress: Progress = SILENT
) -> Contender:
    """Return the fastest of a short trial, in which no window is longer than those of `timing`."""
    if len(candidates) == 1:
        return candidates[0]
    trial = Timing(windows=min(_TRIAL.windows, timing.windows), seconds=min(_TRIAL.seconds, timing.seconds))
    rates = [
        in_turns([one], trial, device, title="Looking for a peer's best settings", progress=progress)[0]
        for one in candidates
    ]
    return candidates[max(range(len(rates)), key=lambda index: rates[index].median)]


def papers_loader(
    setup: Setup,
    options: LoaderOptions,
    recipe: str,
    folder: Path,
    timing: Timing,
    progress: Progress = SILENT,
) -> Contender | str:
    """Return the way of the paper's code, on the CPU and with arrays in `folder`; or why there is none."""
    if recipe not in RECIPES_OF_PAPER:
        return f"the paper's way has no recipe {recipe}"
    if setup.source.rate != setup.mel.sample_rate:
        return "the paper's way was not measured: it does not resample"
    count = max(_ARRAYS, setup.batch_size)
    paths = write_arrays(setup.source, folder, count, shortest=needed(setup.mel, recipe))
    if not paths:
        return f"the paper's way was not measured: all tracks are too short for its recipe {recipe}"

    def contender(workers: int) -> Contender:
        def opened() -> AbstractContextManager[Iterable[object]]:
            return paper_loader(
                paths,
                setup.mel,
                options["normalisation"],
                recipe=recipe,
                batch_size=setup.batch_size,
                workers=workers,
            )

        return Contender(
            name=_papers_name(recipe),
            items=setup.batch_size,
            open=opened,
            ahead=TORCH_AHEAD * workers,
            setting=f"{workers} workers",
        )

    # One worker reads faster than two cores compute.
    candidates = [contender(workers) for workers in sorted({1, max(1, cores() // 2)})]
    return fastest(candidates, torch.device("cpu"), timing, progress)


def _papers_name(recipe: str) -> str:
    return f"paper's way: recipe {recipe}"


def alike(
    ours: Contender, rivals: Sequence[Contender], recipe: str
) -> tuple[list[Contender], tuple[str, ...]]:
    """Return those of the `rivals` that make what we make, and why others are none; open each for a while.

    Raises `RuntimeError` if one does not for a recipe of ours: that would be our mistake.
    """
    if not rivals:
        return [], ()
    made = _statistics(ours)
    kept, notes = [], []
    for rival in rivals:
        tolerance = _VOCODED if rival.name == _papers_name("audio") else _ALIKE
        reason = _unlike(made, _statistics(rival), tolerance)
        if not reason:
            kept.append(rival)
        elif recipe in RECIPES:
            raise RuntimeError(f"{rival.name}: {reason}: it is no peer for recipe {recipe}.")
        else:
            notes.append(f"not measured for recipe {recipe}: {rival.name}: {reason}")
    return kept, tuple(notes)


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """What is compared of the views that a loader makes."""

    shape: tuple[int, ...]
    """Of a view."""
    moments: dict[str, list[float]]
    """By name, those of every batch. How far the views of a pair are apart tells what was augmented: they are
    of one crop, so that without any augmentation they are equal.
    """


def _statistics(contender: Contender) -> _Statistics:
    """Return the statistics of many pairs."""
    wanted = max(_FEWEST_COMPARED, math.ceil(_COMPARED / contender.items))
    found = []
    with contender.open() as batches:
        views: Any
        for views in islice(endless(batches), wanted):
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
