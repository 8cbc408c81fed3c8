"""Pairs per second of the loader: stage by stage, beside its peers and beside what the machine allows."""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.paper import RECIPES_OF_PAPER, paper_loader, write_arrays
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import COPY, CROP, FEATURES, dali_loader, of_recipe, stages
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions, set_up
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.pipelines.torch_backend import TorchTwoViewLoader
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

PEERS = ("torch", "paper")
_ARRAYS = 128
"""Tracks, or a batch, that are written for the peer that reads .npy files: 340 MB of clips of 30 s."""
_TRIAL_SECONDS = 1.0
"""Of each setting of a peer, to find its best."""
_COMPARED = 64
"""Pairs."""
_LIKE = 0.25
"""How far mean and deviation of a peer's views may be from ours, where 1 is the deviation of the features."""

# What the project asks of itself, by device and recipe: at least so many times the rate of the other.
_OVER_TORCH = {"cpu": {"image": 1.3, "audio": 5.0}, "cuda": {"image": 2.0, "audio": 2.0}}
_OVER_FEATURES = {"image": 0.6}


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
    options: LoaderOptions = {
        "mel": mel or MelConfig(sample_rate=shard_set.sample_rate),
        "batch_size": batch_size,
        "device": device,
        "threads": threads or cores(),
    }
    setup = set_up(shard_set, options, shuffle=True, labelled_only=False, smaller_batches=False)
    options["normalisation"] = estimate(shard_set, setup.mel, progress)
    found = in_turns(
        stages(setup, options, recipes), timing, device, title="Stages of the DALI graph", progress=progress
    )
    features = named(found, FEATURES)
    ratios = [
        Ratio.of(named(found, of_recipe(recipe)), features, _OVER_FEATURES.get(recipe))
        for recipe in recipes
        if recipe != "none"
    ]
    for recipe in recipes:
        beside = _beside_peers(shard_set, options, recipe, peers, timing, progress)
        found += beside[1:]
        ratios += [Ratio.of(beside[0], rival, _target(device, recipe, rival)) for rival in beside[1:]]
    crop_bytes = 2 * setup.source.span(setup.mel)
    limit, notes = _limits([Path(tar) for tar in setup.source.tars], crop_bytes, device)
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
        notes=notes,
    )


def _target(device: torch.device, recipe: str, rival: Measurement) -> float | None:
    return _OVER_TORCH[device.type].get(recipe) if rival.name.startswith("torch") else None


def _beside_peers(
    shard_set: ShardSet,
    options: LoaderOptions,
    recipe: str,
    peers: Sequence[str],
    timing: Timing,
    progress: Progress,
) -> list[Measurement]:
    """Return the rate of the DALI loader and, in turns with it, of each peer that knows `recipe`."""
    device = torch.device(options["device"])
    ours = dali_loader(shard_set, options, recipe)
    rivals = []
    with tempfile.TemporaryDirectory() as folder:
        if "torch" in peers:
            rivals.append(_best(torch_loaders(shard_set, options, recipe), device, timing, progress))
        if "paper" in peers and recipe in RECIPES_OF_PAPER:
            candidates = _paper_loaders(shard_set, options, recipe, Path(folder))
            rivals.append(_best(candidates, torch.device("cpu"), timing, progress))
        for rival in rivals:
            _check_alike(ours, rival, recipe)
        if not rivals:
            return []
        return in_turns(
            [ours, *rivals], timing, device, title=f"Recipe {recipe} and its peers", progress=progress
        )


def torch_loaders(shard_set: ShardSet, options: LoaderOptions, recipe: str) -> list[Contender]:
    """Return the torch backend with every setting worth trying on this machine.

    On a GPU the strongest has workers that read crops, and computes whole batches there.
    """
    workers = sorted({0, 1, cores() // 2, cores()})
    per_batch = [True] if torch.device(options["device"]).type == "cuda" else [False, True]
    return [
        _torch_loader(shard_set, options, recipe, count, whole) for count in workers for whole in per_batch
    ]


def _torch_loader(
    shard_set: ShardSet, options: LoaderOptions, recipe: str, workers: int, per_batch: bool
) -> Contender:
    spare = max(1, cores() - workers) if per_batch else 1
    own: LoaderOptions = {**options, "threads": spare if workers else cores()}

    def opened() -> TorchTwoViewLoader:
        return TorchTwoViewLoader(shard_set, recipe=recipe, workers=workers, per_batch=per_batch, **own)

    how = "batches" if per_batch else "samples"
    name = f"torch: recipe {recipe}, {workers} workers, {how} at a time"
    return Contender(name=name, items=options["batch_size"], open=opened)


def _paper_loaders(shard_set: ShardSet, options: LoaderOptions, recipe: str, folder: Path) -> list[Contender]:
    """Return the way of the paper's code without workers and with many; it computes on the CPU."""
    setup = set_up(shard_set, options, shuffle=True, labelled_only=False, smaller_batches=False)
    paths = write_arrays(setup.source, folder, max(_ARRAYS, setup.batch_size))

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

        name = f"paper's way: recipe {recipe}, {workers} workers"
        return Contender(name=name, items=setup.batch_size, open=opened)

    return [contender(workers) for workers in sorted({0, cores()})]


def _best(
    candidates: Sequence[Contender], device: torch.device, timing: Timing, progress: Progress
) -> Contender:
    """Return the fastest of a short trial."""
    trial = Timing(windows=1, seconds=min(_TRIAL_SECONDS, timing.seconds))
    rates = [
        in_turns([one], trial, device, title="Looking for a peer's best settings", progress=progress)[0]
        for one in candidates
    ]
    return candidates[max(range(len(rates)), key=lambda index: rates[index].median)]


def _check_alike(ours: Contender, rival: Contender, recipe: str) -> None:
    """Raise RuntimeError, as it is our mistake, if `rival` does not make what we make."""
    (shape, mean, deviation), (their_shape, their_mean, their_deviation) = map(_statistics, (ours, rival))
    if shape != their_shape or abs(mean - their_mean) > _LIKE or abs(deviation - their_deviation) > _LIKE:
        raise RuntimeError(
            f"{rival.name} makes {their_shape}, mean {their_mean:.2f}, deviation {their_deviation:.2f}, not "
            f"{shape}, {mean:.2f}, {deviation:.2f}: it is no peer for recipe {recipe}."
        )


def _statistics(contender: Contender) -> tuple[tuple[int, ...], float, float]:
    """Return shape, mean and deviation of some views."""
    wanted = -(-_COMPARED // contender.items)
    with contender.open() as batches:
        taken: list[Any] = list(islice(batches, wanted))
    values = torch.cat([view.float().cpu() for views in taken for view in views])
    return tuple(values.shape[1:]), float(values.mean()), float(values.std())


def _limits(
    tars: Sequence[Path], crop_bytes: int, device: torch.device
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return what bounds each stage, in pairs/s, where a pair is two crops, and how it was measured."""
    copied = limits.crop_copy(tars, crop_bytes) / 2
    disk = limits.disk_read(tars)
    found = {CROP: copied}
    notes = [
        f"copying two crops of {crop_bytes:,} bytes out of the mapped shards: {copied:,.0f} pairs/s",
        f"copying memory: {limits.memory_copy() / 1e9:.1f} GB/s",
        f"reading the shards from the disk, {'cold' if disk.cold else 'warm: they stayed in memory'}: "
        f"{disk.bytes_per_second / 1e9:.2f} GB/s, {disk.bytes_per_second / crop_bytes / 2:,.0f} pairs/s",
    ]
    if device.type == "cuda":
        found[COPY] = limits.device_copy(device) / crop_bytes / 2
        notes.append(f"copying two crops to the GPU: {found[COPY]:,.0f} pairs/s")
    return found, tuple(notes)
