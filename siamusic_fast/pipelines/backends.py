"""Which implementation makes the batches of pre-training: the DALI graph, or torch on worker processes."""

from pathlib import Path
from typing import Unpack

from siamusic_fast.config import BACKENDS, CROPS
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.options import LoaderOptions
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.torch_backend import TorchTwoViewLoader
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import share_of_cores


def two_view_loader(
    backend: str,
    data: ShardSet | Path | str,
    *,
    recipe: str | Recipe,
    crops: str = CROPS[0],
    max_distance: float | None = None,
    **options: Unpack[LoaderOptions],
) -> TwoViewLoader | TorchTwoViewLoader:
    """Return a loader of `backend`, one of `BACKENDS`; torch's has a worker process for each core.

    Raises `ConfigError` for another name, and what the loaders raise.
    """
    if backend == "dali":
        return TwoViewLoader(data, recipe=recipe, crops=crops, max_distance=max_distance, **options)
    if backend == "torch":
        workers = options.get("threads") or share_of_cores()
        return TorchTwoViewLoader(
            data, recipe=recipe, crops=crops, max_distance=max_distance, workers=workers, **options
        )
    raise ConfigError(f"backend = {backend!r} is unknown: choose one of {', '.join(BACKENDS)}.")
