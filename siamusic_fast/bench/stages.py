"""The stages of the DALI graph, switched on one by one: each costs what it differs from the one before."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nvidia.dali import Pipeline

from siamusic_fast.bench.timing import Contender
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.options import LoaderOptions, Setup
from siamusic_fast.shards.manifest import ShardSet

READ = "DALI: read"
CROP = "DALI: read and crop"
COPY = "DALI: read, crop and copy to the GPU"
FEATURES = "DALI: features alone"


def stages(setup: Setup, options: LoaderOptions, recipes: Sequence[str]) -> list[Contender]:
    """Return a contender for each stage: reading, two crops, copying them to a GPU, features, each recipe."""
    shard_set, source = setup.source.shard_set, setup.source
    on_cpu = graph.Features(setup.mel, options["normalisation"], "cpu")
    found = [
        _stage(READ, setup, lambda arguments: graph.labels_only(source, on_cpu, **arguments)),
        _stage(CROP, setup, lambda arguments: graph.crops_only(source, on_cpu, 2, **arguments)),
    ]
    if setup.device.type == "cuda":
        on_gpu = on_cpu._replace(device="gpu")
        found.append(_stage(COPY, setup, lambda arguments: graph.crops_only(source, on_gpu, 2, **arguments)))
    return found + [dali_loader(shard_set, options, recipe) for recipe in dict.fromkeys(["none", *recipes])]


def of_recipe(recipe: str) -> str:
    """Return the name of the DALI loader with `recipe`."""
    return FEATURES if recipe == "none" else f"DALI: recipe {recipe}"


def dali_loader(shard_set: ShardSet, options: LoaderOptions, recipe: str) -> Contender:
    """Return the loader that users have."""
    return Contender(
        name=of_recipe(recipe),
        items=options["batch_size"],
        open=lambda: TwoViewLoader(shard_set, recipe=recipe, **options),
    )


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
            }
        )
        pipeline.build()
        yield _runs(pipeline, setup.device)

    return Contender(name=name, items=setup.batch_size, open=opened)


def _runs(pipeline: Pipeline, device: torch.device) -> Iterator[object]:
    while True:
        yield pipeline.run(torch.cuda.current_stream(device) if device.type == "cuda" else None)
