"""The stages of the DALI graph, switched on one by one: each costs what it differs from the one before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from nvidia.dali import Pipeline

from siamusic_fast.bench.report import Measurement, added_ms, named, number
from siamusic_fast.bench.timing import Contender
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.options import LoaderOptions, Setup, set_up
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

READ = "DALI: read"
CROP = "DALI: read and crop"
COPY = "DALI: read, crop and copy to the GPU"
TWO_CROPS = "DALI: two crops, no features"
FEATURES = "DALI: features alone"

_AHEAD = 3
"""Batches that DALI makes in advance: two that wait, and one in the making."""
_CROPS_ON_CPU, _CORES = 4_000.0, 2
_ON_GPU, _GPU = {"image": 20_000.0, "audio": 10_000.0}, "H200"
"""What the project asks of itself: tracks/s on a CPU of so many cores, and pairs/s on that GPU."""
_BATCH_ON_CPU, BATCH_ON_GPU = 64, 256
_CODEC = "wav"
"""What it asks for all that in: batches of that size, of shards of that codec."""
HOLDS = 1.25
"""What gives less than so many times what the whole gives is what holds the whole up."""


def prepare(
    shard_set: ShardSet,
    *,
    batch_size: int,
    device: torch.device,
    mel: MelConfig | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Setup, LoaderOptions]:
    """Return what all loaders of a benchmark are given; raise `ConfigError` if it does not fit the shards."""
    options: LoaderOptions = {
        "mel": mel or MelConfig(sample_rate=shard_set.sample_rate),
        "batch_size": batch_size,
        "device": device,
        "threads": threads or cores(),
    }
    setup = set_up(shard_set, options, shuffle=True, labelled_only=False, smaller_batches=False)
    options["normalisation"] = estimate(shard_set, setup.mel, progress)
    return setup, options


def stages(setup: Setup, options: LoaderOptions, recipes: Sequence[str]) -> list[Contender]:
    """Return a contender for each stage: reading, one crop, copying it to a GPU, features, each recipe."""
    shard_set, source = setup.source.shard_set, setup.source
    on_cpu = _on_cpu(setup, options)
    found = [
        _stage(READ, setup, lambda arguments: graph.labels_only(source, on_cpu, **arguments)),
        crop_stage(setup, options),
    ]
    if setup.device.type == "cuda":
        found.append(copy_stage(setup, options))
    return found + [dali_loader(shard_set, options, recipe) for recipe in dict.fromkeys(["none", *recipes])]


def crop_stage(setup: Setup, options: LoaderOptions) -> Contender:
    """Return reading one crop, that of both views: all of a pair that is read."""
    features = _on_cpu(setup, options)
    return _stage(CROP, setup, lambda arguments: graph.crops_only(setup.source, features, 1, **arguments))


def copy_stage(setup: Setup, options: LoaderOptions) -> Contender:
    """Return reading one crop and copying it to the GPU."""
    features = _on_cpu(setup, options)._replace(device="gpu")
    return _stage(COPY, setup, lambda arguments: graph.crops_only(setup.source, features, 1, **arguments))


def bytes_read(setup: Setup) -> float:
    """Return what is read of a track: one crop, or all of it where it must be decoded."""
    source = setup.source
    if source.mapped:
        return 2 * source.span(setup.mel)
    return sum(shard.bytes for shard in source.shards) / source.tracks


def as_asked(shard_set: ShardSet, options: LoaderOptions) -> bool:
    """Return whether shards and batches are those that the project's targets were set for."""
    on_gpu = torch.device(options["device"]).type == "cuda"
    return shard_set.codec == _CODEC and options["batch_size"] == (BATCH_ON_GPU if on_gpu else _BATCH_ON_CPU)


def two_crops(setup: Setup, options: LoaderOptions) -> Contender:
    """Return reading two crops of each track and nothing else, in tracks/s."""
    features = _on_cpu(setup, options)
    made = _stage(
        TWO_CROPS, setup, lambda arguments: graph.crops_only(setup.source, features, 2, **arguments)
    )
    asked = setup.device.type == "cpu" and as_asked(setup.source.shard_set, options)
    target = _CROPS_ON_CPU if asked and setup.threads == cores() == _CORES else None
    return replace(made, unit="tracks/s", target=target)


def chains(recipes: Sequence[str], device: torch.device) -> dict[str, str]:
    """Return for each of the `stages` the name of the one that it extends; reading extends none: ""."""
    first = [READ, CROP, COPY, FEATURES] if device.type == "cuda" else [READ, CROP, FEATURES]
    befores = dict(zip(first, ["", *first], strict=False))
    return befores | {of_recipe(recipe): FEATURES for recipe in recipes if recipe != "none"}


def held_by(found: Sequence[Measurement], befores: Mapping[str, str], recipe: str) -> str:
    """Return in words how long a pair of `recipe` takes, and which of its stages adds most to that.

    That is so on a CPU, which does one after the other.
    """
    name = of_recipe(recipe)
    chain = [name]
    while before := befores[chain[-1]]:
        chain.append(before)
    added = {stage: added_ms(found, stage, befores) for stage in chain}
    most = max(chain, key=added.__getitem__)
    return (
        f"what holds {name}: of {1000 / named(found, name).median:.2f} ms a pair, {added[most]:.2f} ms are "
        f"what {most} adds"
    )


def held_on_gpu(found: Sequence[Measurement], recipe: str, threads: int, bus: float) -> str:
    """Return in words what holds `recipe` on a GPU, where all goes on at the same time: the lowest ceiling.

    The `bus` allows so many pairs/s; the CPU, what the CPU seconds of a pair leave to the `threads`. If
    neither these nor reading, cropping and copying are near the rate, the kernels are what is left.
    """
    loader = named(found, of_recipe(recipe))
    assert loader.cpu_ms is not None
    ceilings = {
        CROP: named(found, CROP).median,
        COPY: named(found, COPY).median,
        "the bus": bus,
        f"the CPU time, on {threads} threads": 1000 * threads / loader.cpu_ms,
    }
    lowest = min(ceilings, key=ceilings.__getitem__)
    holds = lowest if ceilings[lowest] < HOLDS * loader.median else "the kernels, as nothing else is near"
    allowed = ", ".join(f"{name} {number(rate)}" for name, rate in ceilings.items())
    return f"what holds {loader.name} at {number(loader.median)} pairs/s: {holds}; allowed are: {allowed}"


def _on_cpu(setup: Setup, options: LoaderOptions) -> graph.Features:
    return graph.Features(setup.mel, options["normalisation"], "cpu")


def of_recipe(recipe: str) -> str:
    """Return the name of the DALI loader with `recipe`."""
    return FEATURES if recipe == "none" else f"DALI: recipe {recipe}"


def dali_loader(shard_set: ShardSet, options: LoaderOptions, recipe: str) -> Contender:
    """Return the loader that users have."""
    return Contender(
        name=of_recipe(recipe),
        items=options["batch_size"],
        open=lambda: TwoViewLoader(shard_set, recipe=recipe, **options),
        ahead=_AHEAD,
        ours=True,
        target=_ON_GPU.get(recipe) if _on_that_gpu(options) and as_asked(shard_set, options) else None,
    )


def _on_that_gpu(options: LoaderOptions) -> bool:
    """Return whether the device is the GPU that the rates on a GPU were asked for."""
    device = torch.device(options["device"])
    return device.type == "cuda" and _GPU in torch.cuda.get_device_name(device)


def _stage(name: str, setup: Setup, make: Callable[[dict[str, Any]], Pipeline]) -> Contender:
    @contextmanager
    def opened() -> Iterator[Iterator[object]]:
        pipeline = make(
            {
                "batch_size": setup.batch_size,
                "num_threads": setup.threads,
                "device_id": setup.device.index,
                "seed": 0,
                "prefetch_queue_depth": 2,
                "enable_checkpointing": True,
            }
        )
        pipeline.build()
        yield _runs(pipeline, setup.device)

    return Contender(name=name, items=setup.batch_size, open=opened, ahead=_AHEAD, ours=True)


def _runs(pipeline: Pipeline, device: torch.device) -> Iterator[object]:
    while True:
        yield pipeline.run(torch.cuda.current_stream(device) if device.type == "cuda" else None)
