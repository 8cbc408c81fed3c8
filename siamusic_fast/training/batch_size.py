"""The batch size of a run, made to fit the tracks."""

import dataclasses
import warnings
from typing import TypeVar

from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.world import World

C = TypeVar("C", PretrainConfig, FinetuneConfig)


def fit_batch_size(config: C, tracks: int, world: World) -> C:
    """Return `config` with a batch size that is at most `tracks`, the number of tracks of each process.

    Warns if the batch size shrinks. Raises ConfigError if a batch would be too small for batch norm.
    """
    if config.batch_size <= tracks:
        return config
    each = f"each of {world.world_size} processes" if world.world_size > 1 else "the process"
    learns = isinstance(config, PretrainConfig) or not config.freeze
    if tracks < 2 and learns:
        raise ConfigError(
            f"{each} gets a batch of {tracks} from these tracks, and batch norm needs two: use more "
            f"tracks or labels, or fewer processes (on the command line --splits, --label-fraction, --gpus "
            f"or --procs)."
        )
    if world.leads:
        warnings.warn(
            f"batch_size = {config.batch_size} is more than the {tracks} tracks that {each} gets: training "
            f"goes on with batch_size = {tracks}",
            stacklevel=3,
        )
    return dataclasses.replace(config, batch_size=tracks)
