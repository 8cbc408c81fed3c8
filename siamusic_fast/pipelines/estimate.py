"""Mean and standard deviation of a shard set's features: estimated once, and kept beside the manifest."""

import contextlib
import dataclasses
import hashlib
import math
import warnings
from typing import Any

import numpy as np
import torch

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.errors import DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.checks import check_length
from siamusic_fast.pipelines.plan import TrackPlan
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.engine import TorchEngine, read_and_compute
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.frontends import read_frontends, write_frontends
from siamusic_fast.shards.manifest import DamageError, ShardSet

_MAX_TOTAL_CROPS = 2048
"""Crops from which mean and standard deviation are computed."""
_MAX_TRACKS = 512
"""Tracks that these crops are taken from, each as a whole."""
_MIN_VARIANCE = 1e-4
"""Smallest variance that can be normalized, in dB squared."""


def estimate_frontend(
    shard_set: ShardSet,
    mel: MelConfig | None = None,
    progress: Progress = SILENT,
    *,
    short_tracks: str = SHORT_TRACKS[0],
) -> Frontend:
    """Return the frontend of `shard_set` for the features `mel`, by default the paper's at its sample rate.

    Mean and standard deviation are those of whole tracks: up to 512, spread over the training split, or over
    all splits if there is no training split. They depend on the shards and the arguments alone. They are kept
    in the folder of the shard set and read from there the next time; a warning says so if they are damaged
    and measured again. Raises `ConfigError` if `mel` does not
    fit the shards, `DataError` if the shards hold nothing but one constant sound.
    """
    mel = mel or MelConfig(sample_rate=shard_set.sample_rate)
    key = {"shards": _digest(shard_set), "mel": dataclasses.asdict(mel), "short_tracks": short_tracks}
    kept = _kept(shard_set)
    for entry in kept:
        if entry["key"] == key:
            return Frontend(mel=mel, mean=entry["mean"], std=entry["std"], short_tracks=short_tracks)
    found = _measured(shard_set, Frontend(mel=mel, mean=0.0, std=1.0, short_tracks=short_tracks), progress)
    entry = {"key": key, "mean": found.mean, "std": found.std}
    with contextlib.suppress(OSError):  # a shard set that cannot be written to serves as well
        write_frontends(shard_set.folder, [*kept, entry])
    return found


def _measured(shard_set: ShardSet, raw: Frontend, progress: Progress) -> Frontend:
    splits = ["training"] if "training" in shard_set.splits else list(shard_set.splits)
    tracks = open_tracks(shard_set, splits)
    check_length(tracks, raw.mel)
    crops = max(1, int(np.median(tracks.samples)) // raw.crop_samples(shard_set.sample_rate))
    count = min(len(tracks), _MAX_TRACKS, max(1, _MAX_TOTAL_CROPS // crops))
    chosen = tracks.only(np.linspace(0, len(tracks) - 1, count).round().astype(np.int64))
    plan = TrackPlan(chosen, raw, crops=min(crops, _MAX_TOTAL_CROPS), batch_size=1)
    reader, engine = Reader(chosen, raw), TorchEngine(plan, torch.device("cpu"))
    total = squares = values = 0.0
    with progress.task("Estimating mean and standard deviation", count, "tracks") as task:
        for number in range(plan.batches):
            _, (view,) = read_and_compute(plan.batch((0, number)), reader, engine)
            images = view.double()
            total, squares = total + float(images.sum()), squares + float(images.square().sum())
            values += images.numel()
            task.advance()
    mean = total / values
    variance = squares / values - mean**2
    if variance < _MIN_VARIANCE:
        raise DataError(
            f"{shard_set.folder} holds the same sound everywhere: there is nothing to learn from it."
        )
    return dataclasses.replace(raw, mean=mean, std=math.sqrt(variance))


def _kept(shard_set: ShardSet) -> list[dict[str, Any]]:
    """Return the kept entries of these very shards; none, with a warning, if they are damaged."""
    try:
        entries = read_frontends(shard_set.folder)
    except DamageError as error:
        warnings.warn(
            f"{error.path} cannot be used ({error.reason}): mean and standard deviation are measured again",
            stacklevel=3,
        )
        return []
    return [entry for entry in entries if entry["key"].get("shards") == _digest(shard_set)]


def _digest(shard_set: ShardSet) -> str:
    """Return one checksum of all shards, so that values of an earlier packing are not used for these."""
    sums = sorted(shard.sha256 for shards in shard_set.splits.values() for shard in shards)
    return hashlib.sha256("".join(sums).encode()).hexdigest()
