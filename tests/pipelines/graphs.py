"""Small DALI pipelines around one function, fed with given arrays: how the tests look inside a graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines import graph as product
from siamusic_fast.pipelines.augment import Augmentation
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.source import Source
from siamusic_fast.shards.manifest import ShardSet

Array = NDArray[Any]


def run(
    function: Callable[[Any], Any], batch: list[Array], *, layout: str | None = None, seed: int = 0
) -> list[Array]:
    """Return `function` of every array of the `batch`, computed by DALI on the CPU."""

    @pipeline_def(
        batch_size=len(batch),
        num_threads=2,
        device_id=None,
        seed=seed,
        enable_conditionals=True,
        prefetch_queue_depth=1,
    )
    def graph() -> Any:
        return function(
            fn.external_source(source=lambda: [np.ascontiguousarray(array) for array in batch], layout=layout)
        )

    (output,) = graph().run()
    return [np.array(output[index]) for index in range(len(output))]


def drawn(
    step: Augmentation, mel: MelConfig, *, batches: int = 10, batch_size: int = 2_000, seed: int = 0
) -> dict[str, Array]:
    """Return what `step` draws for so many samples, [batches, batch_size, ...], by name."""
    names: list[str] = []

    @pipeline_def(batch_size=batch_size, num_threads=1, device_id=None, seed=seed, prefetch_queue_depth=1)
    def graph() -> Any:
        draws = step.draw(mel)
        names.extend(draws)
        return tuple(draws.values())

    return _outputs(graph(), names, batches)


def traced(
    shard_set: ShardSet,
    recipe: Recipe,
    mel: MelConfig,
    pairing: Pairing,
    *,
    batches: int,
    batch_size: int,
    seed: int = 0,
) -> dict[str, Array]:
    """Return what the graph of two views draws, [batches, batch_size, ...], by names like view_1.mask.on.

    Batches may be larger than the number of tracks: their last one is then repeated.
    """
    names: list[str] = []
    pipeline = product.traced_views(
        Source(shard_set=shard_set, shards=shard_set.shards(["training"]), shuffle=False, seed=seed),
        recipe,
        product.Features(mel, Normalisation(0.0, 1.0), "cpu"),
        pairing,
        names,
        batch_size=batch_size,
        num_threads=2,
        device_id=None,
        seed=seed,
        prefetch_queue_depth=1,
    )
    return _outputs(pipeline, names, batches)


def _outputs(pipeline: Any, names: list[str], batches: int) -> dict[str, Array]:
    """Return the outputs of `pipeline`, but for waves, whose lengths differ."""
    taken: dict[str, list[Array]] = {}
    for _ in range(batches):
        for name, output in zip(names, pipeline.run(), strict=True):
            if not name.endswith(".wave"):
                taken.setdefault(name, []).append(np.array(output.as_array()))
    return {name: np.stack(parts) for name, parts in taken.items()}


def distance(samples: Array, distribution: Callable[[Array], Array]) -> float:
    """Return Kolmogorov and Smirnov's: how far the share of `samples` up to x is from `distribution`(x)."""
    values, counts = np.unique(samples, return_counts=True)
    share = np.cumsum(counts) / samples.size
    wanted = distribution(values)
    # From the left as well, but where values repeat: those are of a distribution with steps.
    left = np.where(counts == 1, share - 1 / samples.size, share)
    return float(max(abs(share - wanted).max(), abs(left - wanted).max()))


def limit(samples: int) -> float:
    """Return the `distance` that so many samples exceed with a chance of 1 in 100,000."""
    return float(np.sqrt(np.log(2 / 1e-5) / (2 * samples)))
