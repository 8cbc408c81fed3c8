"""Mean and standard deviation of a shard set's features: estimated once, and kept beside the manifest."""

import contextlib
import dataclasses
import math
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siamusic_fast.config import NORMALIZATIONS, SHORT_TRACKS, MelConfig
from siamusic_fast.config.fields import OneOf, check_value
from siamusic_fast.errors import DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.checks import check_length
from siamusic_fast.pipelines.fetch_ahead import THREADS
from siamusic_fast.pipelines.plan import TrackPlan
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.engine import TorchEngine, read_and_compute
from siamusic_fast.pipelines.tracks import Tracks, open_tracks
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.frontends import read_frontends, write_frontends
from siamusic_fast.shards.manifest import DamageError, ShardSet
from siamusic_fast.storage.remote import RemoteFolder, not_there

_MAX_TOTAL_CROPS = 2048
"""Crops from which mean and standard deviation are computed."""
_MAX_TRACKS = 512
"""Tracks that these crops are taken from, each as a whole."""
_MIN_VARIANCE = 1e-4
"""Smallest variance that can be normalized, in dB squared."""
_MIN_BAND_STD = 1.0
"""Smallest standard deviation of a mel band, in dB: what hardly ever changes is not made loud."""


def estimate_frontend(
    shard_set: ShardSet,
    mel: MelConfig | None = None,
    progress: Progress = SILENT,
    *,
    short_tracks: str = SHORT_TRACKS[0],
    normalization: str = NORMALIZATIONS[0],
) -> Frontend:
    """Return the frontend of `shard_set` for the features `mel`, by default the paper's at its sample rate.

    Mean and standard deviation are those of whole tracks: up to 512, spread over the training split, or over
    all splits if there is no training split. With the `normalization` global they are one number each; with
    band, one for every mel band, where a standard deviation is at least 1 dB. They depend on the shards and
    the arguments alone. They are kept in the folder of the shard set and read from there the next time; a
    warning says so if they are damaged and measured again. Raises `ConfigError` if `mel` does not fit the
    shards or `normalization` is unknown, `DataError` if the shards hold nothing but one constant sound.
    """
    check_value("normalization", normalization, OneOf(NORMALIZATIONS))
    mel = mel or MelConfig(sample_rate=shard_set.sample_rate)
    settings = {"mel": dataclasses.asdict(mel), "short_tracks": short_tracks}
    key = {"shards": shard_set.digest, **settings, "normalization": normalization}
    kept = _kept(shard_set)
    for entry in kept:
        if entry["key"] == key:
            return Frontend.load({**settings, "mean": entry["mean"], "std": entry["std"]})
    raw = Frontend(mel=mel, mean=0.0, std=1.0, short_tracks=short_tracks)
    found = _measured(shard_set, raw, normalization, progress)
    entry = {"key": key, "mean": found.mean, "std": found.std}
    with contextlib.suppress(OSError):  # a shard set that cannot be written to serves as well
        write_frontends(shard_set.folder, [*kept, entry])
    return found


def _measured(shard_set: ShardSet, raw: Frontend, normalization: str, progress: Progress) -> Frontend:
    splits = ["training"] if "training" in shard_set.splits else list(shard_set.splits)
    tracks = open_tracks(shard_set, splits)
    check_length(tracks, raw.mel)
    crops = max(1, int(np.median(tracks.samples)) // raw.crop_samples(shard_set.sample_rate))
    count = min(len(tracks), _MAX_TRACKS, max(1, _MAX_TOTAL_CROPS // crops))
    chosen = tracks.only(np.linspace(0, len(tracks) - 1, count).round().astype(np.int64))
    plan = TrackPlan(chosen, raw, crops=min(crops, _MAX_TOTAL_CROPS), batch_size=1)
    engine = TorchEngine(plan, torch.device("cpu"))
    sums = torch.zeros(
        2, raw.mel.n_mels, dtype=torch.float64
    )  # of the values of each band, and their squares
    with (
        _on_disk(chosen) as here,
        contextlib.closing(Reader(here, raw)) as reader,
        progress.task("Estimating mean and standard deviation", count, "tracks") as task,
    ):
        for number in range(plan.batches):
            _, (view,) = read_and_compute(plan.batch((0, number)), reader, engine)
            images = view.double()
            sums += torch.stack([images, images.square()]).sum(dim=(1, 2, 4))
            task.advance()
    means, squares = (sums / (plan.batches * view.numel() / raw.mel.n_mels)).numpy()
    mean = float(means.mean())
    variance = float(squares.mean()) - mean**2
    if variance < _MIN_VARIANCE:
        raise DataError(
            f"{shard_set.place} holds the same sound everywhere: there is nothing to learn from it."
        )
    if normalization == "global":
        return dataclasses.replace(raw, mean=mean, std=math.sqrt(variance))
    stds = np.sqrt(np.maximum(squares - means**2, _MIN_BAND_STD**2))
    return dataclasses.replace(raw, mean=tuple(means.tolist()), std=tuple(stds.tolist()))


@contextlib.contextmanager
def _on_disk(tracks: Tracks) -> Iterator[Tracks]:
    """Yield the same tracks on a disk. Of shards in object storage, only their audio is fetched.

    It lies in a temporary folder (`TMPDIR`) at its places in the tars; what is between them takes no space.
    """
    shard_set = tracks.shard_set
    if shard_set.cache is None:
        yield tracks
        return
    remote = RemoteFolder(shard_set.url)

    def fetch(track: int) -> None:
        name = tracks.shards[int(tracks.shard[track])].file
        start, size = int(tracks.offset[track]), int(tracks.size[track])
        try:
            audio = remote.read_part(name, start, size)
        except FileNotFoundError:
            raise not_there(remote, name) from None
        if len(audio) != size:
            raise tracks.damaged(track, f"the tar ends at byte {start + len(audio)}")
        path = Path(folder, name)
        path.touch()
        with path.open("r+b") as file:
            file.seek(start)
            file.write(audio)

    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(fetch, range(len(tracks))):
                pass
        yield dataclasses.replace(
            tracks, shard_set=dataclasses.replace(shard_set, folder=Path(folder), cache=None)
        )


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
    return [entry for entry in entries if entry["key"].get("shards") == shard_set.digest]
