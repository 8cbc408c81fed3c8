"""Checks of what loaders are asked for. They need neither torch nor the tracks themselves."""

import importlib.util
import math
from collections.abc import Sequence

from siamusic_fast.config import BACKENDS, CROPS, MelConfig
from siamusic_fast.config.fields import Between, OneOf, check_value
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.shards.manifest import Shard, ShardSet


def check_backend(backend: str) -> None:
    """Raise `ConfigError` unless `backend` is an engine that is installed."""
    check_value("backend", backend, OneOf(BACKENDS))
    if backend == "dali" and not _has_dali():
        raise ConfigError(
            "backend = 'dali', and DALI is not installed: `pip install nvidia-dali-cuda120`, or use "
            "backend='torch' (on the command line --backend torch)."
        )


def check_crops(crops: str, max_distance: float | None) -> None:
    """Raise `ConfigError` unless the two views of a track can be taken from it in this way."""
    check_value("crops", crops, OneOf(CROPS))
    if max_distance is not None:
        check_value("max_distance", max_distance, Between(0))


def check_length(tracks: Tracks, mel: MelConfig) -> None:
    """Raise `ConfigError` if a crop of `mel` is longer than every one of `tracks`."""
    _check_length(tracks.shard_set, int(tracks.samples.max()), mel)


def check_shard_length(shard_set: ShardSet, shards: Sequence[Shard], mel: MelConfig) -> None:
    """Raise `ConfigError` if a crop of `mel` is longer than what the manifest says of every track."""
    _check_length(shard_set, max(shard.longest for shard in shards), mel)


def check_cache(
    shard_set: ShardSet, shards: Sequence[Shard], window: int | None, tracks: int, or_else: str = ""
) -> None:
    """Raise `ConfigError` if the cache of a set in object storage does not hold what is read at a time.

    That is two windows, the one that is read and the one that is fetched, and as many shards as a batch of so
    many `tracks`, of all processes, may reach into. Without a `window` it is all of `shards`. For
    `or_else` see `ShardCache.check_holds`.
    """
    if shard_set.cache is None:
        return
    held = len(shards)
    if window is not None:
        held = min(held, 2 * window + -(-tracks // min(shard.tracks for shard in shards)))
    sizes = sorted((shard.bytes for shard in shards), reverse=True)
    with_window = f"with window = {window}" if window else "without a window"
    shard_set.cache.check_holds(sum(sizes[:held]), with_window, or_else)


def fitting_seconds(samples: int, sample_rate: int) -> float:
    """Return the length in seconds, rounded down, of the longest crop of a track of `samples`."""
    digits = 10 if samples >= sample_rate else 1000
    return math.floor(digits * samples / sample_rate) / digits


def _check_length(shard_set: ShardSet, longest: int, mel: MelConfig) -> None:
    seconds = longest / shard_set.sample_rate
    if seconds < mel.samples / mel.sample_rate:
        fitting = fitting_seconds(longest, shard_set.sample_rate)
        raise ConfigError(
            f"seconds = {mel.seconds:g} makes crops that are longer than the longest track in "
            f"{shard_set.place}, {seconds:.3g} s: use {fitting:g} or less (on the command line "
            f"--seconds {fitting:g})."
        )


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
