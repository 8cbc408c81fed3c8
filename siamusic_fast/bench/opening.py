"""How long it takes until a loader over very many tracks can be asked for its first batch, and its memory."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siamusic_fast.bench.timing import endless, take
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.codec import pcm_bytes
from siamusic_fast.shards.manifest import Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.plan import Track
from siamusic_fast.shards.tables import PackedTrack, write_rejects, write_tracks
from siamusic_fast.shards.writer import Sample, Storage, write_shard

_RATE = 22_050
_SECONDS = 0.1
"""Of each track: short, since opening reads no audio."""
_FEWEST_BATCHES, _FEWEST_PAIRS = 12, 2_048
"""That a loader makes before its memory is looked at: by then its buffers are as large as they become."""
_SMALL = 512
"""Tracks that are opened first."""

_LOOK = """
import json, sys
from siamusic_fast.bench.opening import open_and_run

print(*open_and_run(**json.loads(sys.argv[1])))
"""
"""Opens a loader in a process of its own, whose memory then is that of the loader."""


def opening_seconds(folder: Path, tracks: int, windows: int) -> tuple[float, ...]:
    """Return how long opening at least `tracks` tracks, made in the new folder `folder`, takes each time.

    What the first loader of a process starts, whatever its size, has been started before.
    """
    folder.mkdir()
    repeated_shards(folder / "many", tracks)
    repeated_shards(folder / "few", _SMALL)
    _open_seconds(folder / "few")
    return tuple(_open_seconds(folder / "many") for _ in range(windows))


def _open_seconds(folder: Path) -> float:
    """Return how long reading the manifest in `folder` and building a loader takes."""
    started = time.perf_counter()
    with _opened(folder):
        return time.perf_counter() - started


def look_at(folder: Path, **options: Any) -> tuple[float, float, float]:
    """Return what `open_and_run` does, of a process of its own; raise `RuntimeError` if that fails."""
    command = [sys.executable, "-c", _LOOK, json.dumps({"folder": str(folder), **options})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process that opened {folder} failed:\n{done.stderr}")
    seconds, opening, running = map(float, done.stdout.split())
    return seconds, opening, running


def open_and_run(
    folder: str, *, recipe: str = "image", device: str = "cpu", **options: Any
) -> tuple[float, float, float]:
    """Return the seconds of opening `folder`, and the MiB that opening and then running add.

    They are those of this process at their peak while it opens, and those that are its own, without the
    mapped shards, when it has made some batches; less than 1 MiB counts as 1. A small loader is opened and
    run before, so that what any loader takes is there already. `options` are those of the loader and
    `seconds`, the length of a crop.
    """
    same: dict[str, Any] = {"recipe": recipe, "device": device}
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "shards"
        repeated_shards(small, _SMALL, seconds=2 * _SECONDS)
        with _opened(small, **same) as loader:
            take(endless(loader), 1)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    peak, own = _mebibytes("VmHWM"), _mebibytes("RssAnon")
    started = time.perf_counter()
    with _opened(Path(folder), **same, **options) as loader:
        seconds = time.perf_counter() - started
        opening = _mebibytes("VmHWM") - peak
        take(endless(loader), max(_FEWEST_BATCHES, -(-_FEWEST_PAIRS // loader.batch_size)))
        running = _mebibytes("RssAnon") - own
    return seconds, max(1.0, opening), max(1.0, running)


def _opened(folder: Path, *, seconds: float = _SECONDS, **options: Any) -> TwoViewLoader:
    shard_set = read_manifest(folder)
    mel = MelConfig(seconds=seconds)
    return TwoViewLoader(shard_set, mel=mel, normalisation=Normalisation(0.0, 1.0), **options)


def _mebibytes(key: str) -> float:
    """Return what the kernel says of this process's memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(status[status.index(f"{key}:") + 1]) / 1024


def repeated_shards(
    folder: Path, tracks: int, tracks_per_shard: int = 512, *, seconds: float = _SECONDS
) -> ShardSet:
    """Make full shards of at least `tracks` tracks in the new folder `folder`: one file under many names."""
    count = -(-tracks // tracks_per_shard)
    folder.mkdir()
    pcm = np.random.default_rng(0).integers(-1000, 1000, round(seconds * _RATE)).astype(np.int16)
    samples = [
        Sample(f"{n:06d}", Track(f"{n:06d}", f"{n:06d}.mp3", "training", "Folk"), 0, pcm)
        for n in range(tracks_per_shard)
    ]
    first = write_shard(folder, "training-000000", samples, storage=Storage(sample_rate=_RATE), labelled=True)
    shards = [first, *(_link(folder, first, number) for number in range(1, count))]
    shard_set = ShardSet(
        folder=folder,
        source="repeated",
        codec="wav",
        sample_rate=_RATE,
        classes=("Folk",),
        seed=0,
        min_seconds=0.0,
        splits={"training": tuple(shards)},
        rejected={},
    )
    write_tracks(folder, _rows(samples, shards))
    write_rejects(folder, [])
    write_manifest(shard_set)
    return shard_set


def _rows(samples: Sequence[Sample], shards: Sequence[Shard]) -> Iterator[PackedTrack]:
    """Yield the rows of tracks.csv: `samples`, whose audio is the same, once for each of `shards`."""
    pcm = samples[0].pcm
    sha256 = hashlib.sha256(pcm_bytes(pcm)).hexdigest()
    for shard in shards:
        for sample in samples:
            yield PackedTrack(
                key=sample.key,
                track_id=sample.key,
                offset=0.0,
                split=sample.track.split,
                genre=sample.track.genre,
                seconds=len(pcm) / _RATE,
                samples=len(pcm),
                clipped=0,
                shard=shard.file,
                path=sample.track.path,
                sha256=sha256,
            )


def _link(folder: Path, shard: Shard, number: int) -> Shard:
    copy = dataclasses.replace(shard, file=f"training-{number:06d}.tar", index=f"training-{number:06d}.idx")
    os.link(folder / shard.file, folder / copy.file)
    os.link(folder / shard.index, folder / copy.index)
    return copy
