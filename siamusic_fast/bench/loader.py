"""Pairs per second of the loader: stage by stage, beside its peers and beside what the machine allows."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.peers import TORCH_AHEAD, TorchPeer, alike, fastest, papers_loader
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import (
    COPY,
    CROP,
    FEATURES,
    TWO_CROPS,
    as_asked,
    bytes_read,
    chains,
    dali_loader,
    held_by,
    held_on_gpu,
    of_recipe,
    prepare,
    stages,
    two_crops,
)
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import LoaderOptions, Setup
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

PEERS = ("torch", "paper")
_OPENINGS = 2
"""How often everything is opened anew, so that the spread has in it what stays as long as it is open."""

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

    The peers read the same tracks: `torch` is the torch backend, once with workers that compute on the CPU
    and once with workers that read while whole batches are computed on `device`, each with the best number of
    workers on this machine; `paper` is what the paper's code does. That a peer makes batches of the same
    shape and statistics is checked before; of one that does not, a note says why it is left out. Raises
    `ConfigError` if the options do not fit the shards.
    """
    device, timing = device or torch.device("cpu"), timing or Timing()
    setup, options = prepare(
        shard_set, batch_size=batch_size, device=device, mel=mel, threads=threads, progress=progress
    )
    tars = [Path(tar) for tar in setup.source.tars]
    crop_bytes = 2 * setup.source.span(setup.mel)
    found = in_turns(
        [
            *stages(setup, options, recipes),
            two_crops(setup, options),
            limits.copying_crops(tars, crop_bytes),
            limits.copying(),
            *([limits.copying_to(device)] if device.type == "cuda" else []),
        ],
        timing,
        device,
        openings=_OPENINGS,
        title="Stages of the DALI graph",
        progress=progress,
    )
    befores = chains(recipes, device)
    bounds = _bounds(found, crop_bytes)
    held = _held(found, recipes, befores, bounds, options["threads"])
    asked, all_cores = as_asked(shard_set, options), options["threads"] >= cores()
    ratios = _over_features(found, recipes, device, asked)
    ratios.append(Ratio.of(named(found, CROP), named(found, limits.COPYING_CROPS)))
    dropped: list[str] = []
    for recipe in recipes:
        beside, missing = _beside_peers(setup, options, recipe, peers, timing, progress)
        found += beside
        dropped += missing
        for rival in beside[1:] if all_cores else ():
            ratios += _ratios(beside[0], rival, recipe, device, asked)
    disk = limits.disk_read(tars)
    found.append(disk.measurement())
    notes = [_sizes(setup, crop_bytes, disk)]
    if peers and not all_cores:
        notes.append(f"DALI had {options['threads']} of {cores()} cores, its peers all: no ratio is fair")
    return Report(
        title=f"Loader on {device.type}, batches of {batch_size}",
        settings={
            "recipes": list(recipes),
            "peers": list(peers),
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
        limits=bounds,
        notes=(*dropped, *notes, *held),
        befores=befores,
    )


def _held(
    found: Sequence[Measurement],
    recipes: Sequence[str],
    befores: Mapping[str, str],
    bounds: Mapping[str, float],
    threads: int,
) -> list[str]:
    """Return in words what holds each recipe."""
    if COPY in bounds:
        return [held_on_gpu(found, recipe, threads, bounds[COPY]) for recipe in recipes]
    return [held_by(found, befores, recipe) for recipe in recipes]


def _over_features(
    found: Sequence[Measurement], recipes: Sequence[str], device: torch.device, asked: bool
) -> list[Ratio]:
    """Return the rate of each recipe over that of the features alone, and on a CPU what it costs there.

    Only there, and only if shards and batches are as `asked`, has the rate a target.
    """
    features = named(found, FEATURES)
    targets = _OVER_FEATURES if asked and device.type == "cpu" else {}
    ratios = []
    for recipe in recipes:
        if recipe != "none":
            ours = named(found, of_recipe(recipe))
            ratios.append(Ratio.of(ours, features, targets.get(recipe)))
            if device.type == "cpu":
                ratios.append(Ratio.of_cpu(ours, features))
    return ratios


def _ratios(
    ours: Measurement, rival: Measurement, recipe: str, device: torch.device, asked: bool
) -> list[Ratio]:
    """Return the rate and the CPU seconds over those of a peer, with targets if all is as `asked`."""
    if not rival.name.startswith("torch"):
        return [Ratio.of(ours, rival)]
    rate = _OVER_TORCH[device.type].get(recipe) if asked else None
    cpu = _CPU_OVER_TORCH if asked and device.type == "cuda" else None
    return [Ratio.of(ours, rival, rate), Ratio.of_cpu(ours, rival, cpu)]


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
    rivals: list[Contender] = []
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        if "torch" in peers:
            ways = torch_loaders(setup.source.shard_set, options, recipe)
            rivals += [fastest(way, setup.device, timing, progress) for way in ways]
        if "paper" in peers:
            peer = papers_loader(setup, options, recipe, Path(folder), timing, progress)
            if isinstance(peer, Contender):
                rivals.append(peer)
            else:
                notes.append(peer)
        rivals, reasons = alike(ours, rivals)
        notes += reasons
        if not rivals:
            return [], notes
        turns = [replace(ours, name=f"{ours.name}, beside its peers"), *rivals]
        title = f"Recipe {recipe} and its peers"
        found = in_turns(turns, timing, setup.device, openings=_OPENINGS, title=title, progress=progress)
        return found, notes


def torch_loaders(shard_set: ShardSet, options: LoaderOptions, recipe: str) -> list[list[Contender]]:
    """Return the torch backend in either way of working, with each number of workers that is worth trying.

    Its own way on a CPU comes first. The second, in which workers read crops and whole batches are computed
    on the device, is the strongest on a GPU.
    """
    counts = sorted({0, 1, cores() // 2, cores()})
    return [
        [torch_loader(shard_set, options, recipe, workers, per_batch) for workers in counts]
        for per_batch in (False, True)
    ]


def torch_loader(
    shard_set: ShardSet, options: LoaderOptions, recipe: str, workers: int, per_batch: bool
) -> Contender:
    """Return the torch backend with so many workers, which compute unless it is done `per_batch`."""
    spare = max(1, cores() - workers) if per_batch else 1
    own: LoaderOptions = {**options, "threads": spare if workers else cores()}

    def opened() -> TorchPeer:
        return TorchPeer(shard_set, recipe=recipe, workers=workers, per_batch=per_batch, **own)

    on_gpu = per_batch and torch.device(options["device"]).type == "cuda"
    how = "whole batches" if per_batch else "samples one by one"
    return Contender(
        name=f"torch, batches: recipe {recipe}" if per_batch else f"torch: recipe {recipe}",
        items=options["batch_size"],
        open=opened,
        ahead=TORCH_AHEAD * workers,
        setting=f"{workers} workers, {how} on the {'GPU' if on_gpu else 'CPU'}",
    )


def _bounds(found: Sequence[Measurement], crop_bytes: int) -> dict[str, float]:
    """Return what bounds each stage, in its unit."""
    copied = named(found, limits.COPYING_CROPS).median
    bounds = {CROP: copied, TWO_CROPS: copied / 2}
    if any(one.name == limits.TO_GPU for one in found):
        bounds[COPY] = 1e9 * named(found, limits.TO_GPU).median / crop_bytes
    return bounds


def _sizes(setup: Setup, crop_bytes: int, disk: limits.DiskRead) -> str:
    """Return in words what is read and copied of a track, and how many tracks the disk allows."""
    read, codec = bytes_read(setup), setup.source.shard_set.codec
    allows = "the disk allows" if disk.cold else "memory, which held the files, allows"
    return (
        f"a crop has {crop_bytes:,} bytes; of a {codec} track {read:,.0f} bytes are read: {allows} "
        f"{disk.bytes_per_second / read:,.0f} tracks/s"
    )
