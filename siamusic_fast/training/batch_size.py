"""The batch size of a run, made to fit the tracks."""

import dataclasses
import warnings
from typing import TypeVar

from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.processes.world import World
from siamusic_fast.training.checks import check_share

C = TypeVar("C", PretrainConfig, FinetuneConfig)


def fit_batch_size(config: C, tracks: int, world: World) -> C:
    """Return `config` with a batch size that is at most `tracks`, what each process gets in an epoch.

    That is the number of its tracks, or of their crops in fine-tuning.

    Warns if the batch size shrinks. Raises ConfigError if a batch would be too small for batch norm.
    """
    if config.batch_size <= tracks:
        return config
    each = f"each of {world.world_size} processes" if world.world_size > 1 else "the process"
    learns = isinstance(config, PretrainConfig) or not config.freeze
    kind = "tracks" if isinstance(config, PretrainConfig) else "crops"
    check_share(tracks * world.world_size, world.world_size, learns=learns, kind=kind)
    if world.leads:
        warnings.warn(
            f"batch_size = {config.batch_size} is more than the {tracks} {kind} that {each} gets: training "
            f"goes on with batch_size = {tracks}",
            stacklevel=3,
        )
    return dataclasses.replace(config, batch_size=tracks)
