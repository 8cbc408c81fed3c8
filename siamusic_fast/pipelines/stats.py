"""Normalisation constants: estimated once per shard set and features, and kept beside the manifest."""

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np
import torch

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.options import Setup
from siamusic_fast.pipelines.source import Source, check_crops
from siamusic_fast.pipelines.torch_features import LogMel
from siamusic_fast.pipelines.torch_source import Tracks
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.files import atomic_write
from siamusic_fast.shards.manifest import NORMALISATION, ShardSet

_CROPS = 2048
_BATCH = 16
_LEAST_VARIANCE = 1e-4
"""In dB squared."""
_FORMER_KEY = {"short_tracks": SHORT_TRACKS[0]}
"""What earlier versions kept constants of without saying so."""


def normalisation_of(setup: Setup) -> Normalisation:
    """Return the constants that a loader was given, or else those of its shards; raise as `estimate` does."""
    return setup.normalisation or estimate(
        setup.source.shard_set, setup.mel, short_tracks=setup.source.short_tracks
    )


def estimate(
    shard_set: ShardSet,
    mel: MelConfig,
    progress: Progress = SILENT,
    *,
    short_tracks: str = SHORT_TRACKS[0],
) -> Normalisation:
    """Return mean and deviation, in dB, of the log-mels of about 2,000 random crops of the training split.

    All splits serve if there is none called training. The result depends on the shards, on `mel`
    and on `short_tracks` (what is done with tracks that are shorter than a crop) alone, and is read from the
    shard set's folder if it was estimated before. Raises `ConfigError` if `mel` does not fit the shards,
    `DataError` if they hold nothing but one constant sound.
    """
    key = {"shards": _digest(shard_set), "mel": dataclasses.asdict(mel), "short_tracks": short_tracks}
    cached = _cached(shard_set)
    for entry in cached:
        if {**_FORMER_KEY, **entry["key"]} == key:
            return Normalisation(entry["mean"], entry["deviation"])
    result = _measure(shard_set, mel, short_tracks, progress)
    entry = {"key": key, "mean": result.mean, "deviation": result.deviation}
    # A shard set that cannot be written to serves as well.
    with contextlib.suppress(OSError), atomic_write(shard_set.path(NORMALISATION)) as file:
        file.write(json.dumps([*cached, entry], indent=2).encode())
    return result


def _measure(shard_set: ShardSet, mel: MelConfig, short_tracks: str, progress: Progress) -> Normalisation:
    splits = ["training"] if "training" in shard_set.splits else list(shard_set.splits)
    source = Source(
        shard_set=shard_set, shards=shard_set.shards(splits), shuffle=True, short_tracks=short_tracks
    )
    check_crops(source, mel)
    tracks = Tracks(source, source.span(mel))
    log_mel = LogMel(mel, Normalisation(0.0, 1.0), source.rate, torch.device("cpu"))
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(source.tracks)[:_CROPS])
    positions = rng.random(len(chosen))
    count, total, squares = 0, 0.0, 0.0
    with progress.task("Estimating mean and deviation", len(chosen), "crops") as task:
        for first in range(0, len(chosen), _BATCH):
            part = slice(first, first + _BATCH)
            pcm = tracks.crops(chosen[part], positions[part], source.span(mel)).pcm
            mels = log_mel.plain(pcm).double()
            count += mels.numel()
            total += float(mels.sum())
            squares += float(mels.square().sum())
            task.advance(len(pcm))
    mean = total / count
    variance = squares / count - mean**2
    if variance < _LEAST_VARIANCE:
        raise DataError(
            f"{shard_set.folder} holds the same sound everywhere: there is nothing to learn from it."
        )
    return Normalisation(mean, math.sqrt(variance))


def _cached(shard_set: ShardSet) -> list[dict[str, Any]]:
    """Return what was kept of these very shards; a file that is missing or damaged holds nothing."""
    try:
        entries = json.loads(shard_set.path(NORMALISATION).read_bytes())
        kept = [entry for entry in entries if entry["key"]["shards"] == _digest(shard_set)]
        return [entry for entry in kept if isinstance(entry["mean"] + entry["deviation"], float)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _digest(shard_set: ShardSet) -> str:
    """Return one checksum of all shards, so that constants of an earlier packing are not taken for these."""
    sums = sorted(shard.sha256 for shards in shard_set.splits.values() for shard in shards)
    return hashlib.sha256("".join(sums).encode()).hexdigest()
