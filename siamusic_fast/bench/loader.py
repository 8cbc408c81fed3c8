"""Pairs per second of the loader: stage by stage, beside its peers and beside what the machine allows."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from siamusic_fast.bench import limits
from siamusic_fast.bench.peers import alike, papers_loader, torch_loader
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import (
    FEATURES,
    HAND_OVER,
    READ,
    Setup,
    as_asked,
    bytes_read,
    chains,
    dali_loader,
    held_by,
    held_on_gpu,
    of_recipe,
    plan_of_batch,
    prepare,
    stages,
    with_plan_times,
)
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

PEERS = ("torch", "paper")
_OPENINGS = 2
"""How often everything is opened anew, so that the spread has in it what stays as long as it is open."""

# What the project asks of itself, by recipe: at least so many times the rate of the other.
_OVER_TORCH = {"image": 2.0, "audio": 2.0}
"""On a GPU."""
_CPU_OVER_TORCH = 0.5
"""On a GPU, at most so many times its CPU seconds."""
_OVER_FEATURES = {"image": 0.85}
"""On a CPU."""


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

    The peers read the same tracks: `torch` is the torch backend with all cores; `paper` is what the paper's
    code does, with the best number of workers on this machine. That a peer makes batches of the same shape
    and statistics is checked before; of one that does not, a note says why it is left out. Raises
    `ConfigError` if the options do not fit the shards.
    """
    device, timing = device or torch.device("cpu"), timing or Timing()
    setup = prepare(
        shard_set, batch_size=batch_size, device=device, mel=mel, threads=threads, progress=progress
    )
    tars = [shard_set.path(shard.file) for shard in setup.plan.tracks.shards]
    crop_bytes = 2 * setup.plan.crop_samples
    found = in_turns(
        [
            *stages(setup, recipes),
            *(plan_of_batch(setup, recipe) for recipe in recipes),
            limits.copying_crops(tars, crop_bytes),
            limits.copying(),
            *([limits.copying_to(device)] if device.type == "cuda" else []),
        ],
        timing,
        device,
        openings=_OPENINGS,
        title="Stages of the DALI loader",
        progress=progress,
    )
    found = with_plan_times(found, recipes)
    befores = chains(recipes)
    bounds = _bounds(found, crop_bytes)
    held = _held(found, recipes, befores, bounds, setup)
    asked, all_cores = as_asked(shard_set, setup.config), setup.threads >= cores()
    ratios = _over_features(found, recipes, device, asked)
    ratios.append(Ratio.of(named(found, READ), named(found, limits.COPYING_CROPS)))
    dropped: list[str] = []
    for recipe in recipes:
        beside, missing = _beside_peers(setup, recipe, peers, timing, progress)
        found += beside
        dropped += missing
        for rival in beside[1:] if all_cores else ():
            ratios += _ratios(beside[0], rival, recipe, device, asked)
    disk = limits.disk_read(tars)
    found.append(disk.measurement())
    notes = [_sizes(setup, crop_bytes, disk)]
    if peers and not all_cores:
        notes.append(f"DALI had {setup.threads} of {cores()} cores, its peers all: no ratio is fair")
    return Report(
        title=f"Loader on {device.type}, batches of {batch_size}",
        settings={
            "recipes": list(recipes),
            "peers": list(peers),
            "shards": shard_set.source,
            "codec": shard_set.codec,
            "tracks": len(setup.plan.tracks),
            "batch_size": batch_size,
            "device": device.type,
            "threads": setup.threads,
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
    setup: Setup,
) -> list[str]:
    """Return in words what holds each recipe."""
    if setup.device.type == "cuda":
        return [held_on_gpu(found, recipe, setup.threads, bounds[HAND_OVER]) for recipe in recipes]
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
    judged = asked and device.type == "cuda"
    rate, cpu = (_OVER_TORCH.get(recipe), _CPU_OVER_TORCH) if judged else (None, None)
    return [Ratio.of(ours, rival, rate), Ratio.of_cpu(ours, rival, cpu)]


def _beside_peers(
    setup: Setup, recipe: str, peers: Sequence[str], timing: Timing, progress: Progress
) -> tuple[list[Measurement], list[str]]:
    """Return the rate of the DALI loader and, in turns with it, of each peer that knows `recipe`.

    And why a peer is missing, if it is.
    """
    ours = dali_loader(setup.shard_set, setup.config, recipe)
    rivals: list[Contender] = []
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        if "torch" in peers:
            rivals.append(torch_loader(setup, recipe))
        if "paper" in peers:
            peer = papers_loader(setup, recipe, Path(folder), timing, progress)
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


def _bounds(found: Sequence[Measurement], crop_bytes: int) -> dict[str, float]:
    """Return what bounds each stage, in its unit."""
    bounds = dict.fromkeys((READ, HAND_OVER), named(found, limits.COPYING_CROPS).median)
    if any(one.name == limits.TO_GPU for one in found):
        bounds[HAND_OVER] = 1e9 * named(found, limits.TO_GPU).median / crop_bytes
    return bounds


def _sizes(setup: Setup, crop_bytes: int, disk: limits.DiskRead) -> str:
    """Return in words what is read and copied of a track, and how many tracks the disk allows."""
    read, codec = bytes_read(setup), setup.shard_set.codec
    allows = "the disk allows" if disk.cold else "memory, which held the files, allows"
    return (
        f"a crop has {crop_bytes:,} bytes; of a {codec} track {read:,.0f} bytes are read: {allows} "
        f"{disk.bytes_per_second / read:,.0f} tracks/s"
    )
