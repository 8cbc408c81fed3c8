"""Pairs per second of the loader: stage by stage, beside its peers and beside what the machine allows."""

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.paper import RECIPES_OF_PAPER, needed, paper_loader, write_arrays
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import (
    COPY,
    CROP,
    FEATURES,
    TWO_CROPS,
    dali_loader,
    of_recipe,
    prepare,
    stages,
    two_crops,
)
from siamusic_fast.bench.timing import Contender, Timing, endless, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions, Setup
from siamusic_fast.pipelines.recipes import RECIPES
from siamusic_fast.pipelines.torch_backend import TorchTwoViewLoader
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

PEERS = ("torch", "paper")
_ARRAYS = 128
"""Tracks, or a batch, that are written for the peer that reads .npy files: 340 MB of clips of 30 s."""
_TRIAL_SECONDS = 1.0
"""Of each setting of a peer, to find its best."""
_COMPARED = 512
"""Pairs, at least."""
_FEWEST_COMPARED = 8
"""Batches, at least: the paper's way draws once for each."""
_TORCH_AHEAD = 3
"""Batches that each worker of torch makes in advance: two that wait, and one in the making."""
_LIKE = {"torch": 0.25, "paper": 0.5}
"""How far mean and deviation of a peer's views may be from ours, where 1 is the deviation of the features."""

# What the project asks of itself, by device and recipe: at least so many times the rate of the other.
_OVER_TORCH = {"cpu": {"image": 1.3, "audio": 5.0}, "cuda": {"image": 2.0, "audio": 2.0}}
_OVER_FEATURES = {"image": 0.6}
_CPU_OVER_TORCH = 0.5
"""And on a GPU at most so many times its CPU seconds."""


def measure(
    shard_set: ShardSet,
    *,
    recipes: Sequence[str] = ("image", "audio"),
    peers: Sequence[str] = PEERS,
    mel: MelConfig | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    threads: int | None = None,
    timing: Timing | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure the DALI loader on `device` stage by stage, then each of the `recipes` in turns with its peers.

    The peers read the same tracks: `torch` is the torch backend with the best of its settings on this
    machine, `paper` what the paper's code does. That a peer makes batches of the same shape, mean and
    deviation is checked before. Raises `ConfigError` if the options do not fit the shards.
    """
    device, timing = device or torch.device("cpu"), timing or Timing()
    setup, options = prepare(
        shard_set, batch_size=batch_size, device=device, mel=mel, threads=threads, progress=progress
    )
    found = in_turns(
        [*stages(setup, options, recipes), two_crops(setup, options)],
        timing,
        device,
        title="Stages of the DALI graph",
        progress=progress,
    )
    features = named(found, FEATURES)
    ratios = [
        Ratio.of(named(found, of_recipe(recipe)), features, _OVER_FEATURES.get(recipe))
        for recipe in recipes
        if recipe != "none"
    ]
    dropped: list[str] = []
    for recipe in recipes:
        beside, missing = _beside_peers(setup, options, recipe, peers, timing, progress)
        found += beside
        dropped += missing
        for rival in beside[1:]:
            ratios += _ratios(beside[0], rival, recipe, device)
    limit, notes = _limits(setup)
    return Report(
        title=f"Loader on {device.type}, batches of {batch_size}",
        settings={
            "shards": shard_set.source,
            "codec": shard_set.codec,
            "tracks": setup.source.tracks,
            "batch_size": batch_size,
            "device": device.type,
            "threads": options["threads"],
            "windows": timing.windows,
            "window_seconds": timing.seconds,
            "mel": asdict(setup.mel),
        },
        measurements=tuple(found),
        ratios=tuple(ratios),
        limits=limit,
        notes=(*dropped, *notes),
    )


def _ratios(ours: Measurement, rival: Measurement, recipe: str, device: torch.device) -> list[Ratio]:
    if not rival.name.startswith("torch"):
        return [Ratio.of(ours, rival)]
    cpu = _CPU_OVER_TORCH if device.type == "cuda" else None
    return [Ratio.of(ours, rival, _OVER_TORCH[device.type].get(recipe)), Ratio.of_cpu(ours, rival, cpu)]


def _beside_peers(
    setup: Setup,
    options: LoaderOptions,
    recipe: str,
    peers: Sequence[str],
    timing: Timing,
    progress: Progress,
) -> tuple[list[Measurement], list[str]]:
    """Return the rate of the DALI loader and, in turns with it, of each peer that knows `recipe`.

    And why a peer is missing, if it is.
    """
    ours = dali_loader(setup.source.shard_set, options, recipe)
    found: dict[str, Contender] = {}
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        if "torch" in peers:
            found["torch"] = best_torch(setup, options, recipe, timing, progress)
        if "paper" in peers:
            peer = papers_loader(setup, options, recipe, Path(folder), timing, progress)
            if isinstance(peer, Contender):
                found["paper"] = peer
            else:
                notes.append(peer)
        for name, rival in list(found.items()):
            if reason := _unlike(ours, rival, _LIKE[name]):
                if recipe in RECIPES:
                    raise RuntimeError(f"{reason}: it is no peer for recipe {recipe}.")
                notes.append(f"not measured for recipe {recipe}: {reason}")
                del found[name]
        if not found:
            return [], notes
        turns = [replace(ours, name=f"{ours.name}, beside its peers"), *found.values()]
        title = f"Recipe {recipe} and its peers"
        return in_turns(turns, timing, setup.device, title=title, progress=progress), notes


def best_torch(
    setup: Setup, options: LoaderOptions, recipe: str, timing: Timing, progress: Progress = SILENT
) -> Contender:
    """Return the torch backend with the settings that are fastest in a short trial."""
    candidates = torch_loaders(setup.source.shard_set, options, recipe)
    return _best(candidates, setup.device, timing, progress)


def torch_loaders(shard_set: ShardSet, options: LoaderOptions, recipe: str) -> list[Contender]:
    """Return the torch backend with every setting worth trying on this machine.

    On a GPU the strongest has workers that read crops, and computes whole batches there.
    """
    workers = sorted({0, 1, cores() // 2, cores()})
    per_batch = [True] if torch.device(options["device"]).type == "cuda" else [False, True]
    return [
        torch_loader(shard_set, options, recipe, count, whole) for count in workers for whole in per_batch
    ]


def torch_loader(
    shard_set: ShardSet, options: LoaderOptions, recipe: str, workers: int, per_batch: bool
) -> Contender:
    """Return the torch backend with so many workers, which compute unless it is done `per_batch`."""
    spare = max(1, cores() - workers) if per_batch else 1
    own: LoaderOptions = {**options, "threads": spare if workers else cores()}

    def opened() -> TorchTwoViewLoader:
        return TorchTwoViewLoader(shard_set, recipe=recipe, workers=workers, per_batch=per_batch, **own)

    how = "batches" if per_batch else "samples"
    return Contender(
        name=f"torch: recipe {recipe}",
        items=options["batch_size"],
        open=opened,
        ahead=_TORCH_AHEAD * workers,
        setting=f"{workers} workers, {how} at a time",
    )


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
            name=f"paper's way: recipe {recipe}",
            items=setup.batch_size,
            open=opened,
            ahead=_TORCH_AHEAD * workers,
            setting=f"{workers} workers",
        )

    # One worker reads faster than two cores compute.
    candidates = [contender(workers) for workers in sorted({1, max(1, cores() // 2)})]
    return _best(candidates, torch.device("cpu"), timing, progress)


def _best(
    candidates: Sequence[Contender], device: torch.device, timing: Timing, progress: Progress
) -> Contender:
    """Return the fastest of a short trial."""
    if len(candidates) == 1:
        return candidates[0]
    trial = Timing(windows=1, seconds=min(_TRIAL_SECONDS, timing.seconds))
    rates = [
        in_turns([one], trial, device, title="Looking for a peer's best settings", progress=progress)[0]
        for one in candidates
    ]
    return candidates[max(range(len(rates)), key=lambda index: rates[index].median)]


def _unlike(ours: Contender, rival: Contender, tolerance: float) -> str:
    """Return in what `rival` differs from what we make, or nothing."""
    (shape, mean, deviation), (their_shape, their_mean, their_deviation) = map(_statistics, (ours, rival))
    far = max(abs(mean - their_mean), abs(deviation - their_deviation))
    if shape == their_shape and far <= tolerance:
        return ""
    return (
        f"{rival.name} makes {their_shape}, mean {their_mean:.2f}, deviation {their_deviation:.2f}, not "
        f"{shape}, {mean:.2f}, {deviation:.2f}"
    )


def _statistics(contender: Contender) -> tuple[tuple[int, ...], float, float]:
    """Return shape, mean and deviation of many views."""
    wanted = max(_FEWEST_COMPARED, -(-_COMPARED // contender.items))
    means, squares = [], []
    with contender.open() as batches:
        views: Any
        for views in islice(endless(batches), wanted):
            both = torch.cat([view.float().cpu() for view in views])
            means.append(float(both.mean()))
            squares.append(float(both.square().mean()))
    mean = statistics.fmean(means)
    return tuple(both.shape[1:]), mean, (statistics.fmean(squares) - mean**2) ** 0.5


def _limits(setup: Setup) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return what bounds each stage, in its unit, and how it was measured."""
    tars = [Path(tar) for tar in setup.source.tars]
    crop_bytes = 2 * setup.source.span(setup.mel)
    copied = limits.crop_copy(tars, crop_bytes)
    disk = limits.disk_read(tars)
    found = {CROP: copied, TWO_CROPS: copied / 2}
    notes = [
        f"copying crops of {crop_bytes:,} bytes out of the mapped shards: {copied:,.0f} a second, "
        f"two of each track {copied / 2:,.0f} tracks/s",
        f"copying memory: {limits.memory_copy() / 1e9:.1f} GB/s",
        f"reading the shards from the disk, {'cold' if disk.cold else 'warm: they stayed in memory'}: "
        f"{disk.bytes_per_second / 1e9:.2f} GB/s, {disk.bytes_per_second / crop_bytes:,.0f} crops/s",
    ]
    if setup.device.type == "cuda":
        found[COPY] = limits.device_copy(setup.device) / crop_bytes
        notes.append(f"copying a crop to the GPU: {found[COPY]:,.0f} pairs/s")
    return found, tuple(notes)
