"""How long it takes until a loader over very many tracks can be asked for its first batch, and its memory."""

import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import call_in_process, forget_peak, mebibytes
from siamusic_fast.audio.corpus import Track
from siamusic_fast.bench.timing import take
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.manifest import TRACKS, Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.tables import write_rejects, write_tracks
from siamusic_fast.shards.write_shard import Segment, table_row, write_shard

_RATE = 22_050
_SECONDS = 0.1
"""Length of each track: short, since opening reads no audio."""
_MIN_BATCHES, _MIN_PAIRS = 12, 2_048
"""What a loader makes before its memory is measured: by then its buffers are as large as they become."""
_SMALL = 512
"""Tracks that are opened first."""

_LINKS = 50_000
"""Names that one file gets: file systems allow 65,000 and more."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What opening a shard set and running a loader over it took."""

    start_up: float
    """Seconds from the manifest to a loader that can be asked for its first batch."""
    first_batch: float
    """Seconds from the manifest to the first batch."""
    opening: float
    """MiB that were added at the peak while it was opened; less than 1 counts as 1."""
    running: float
    """MiB of its own that the process has more after some batches; less than 1 counts as 1."""
    grown: float
    """MiB of its own that the process has more after many more batches; less than 1 counts as 1."""


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
    """Return how long reading the manifest in `folder` and making a loader takes."""
    started = time.perf_counter()
    with open_loader(folder):
        return time.perf_counter() - started


def open_in_process(folder: Path, **options: Any) -> Opened:
    """Return what `open_and_run` does, of a process of its own; raise `RuntimeError` if that fails."""
    return call_in_process(open_and_run, folder=str(folder.resolve()), **options)


def open_and_run(
    folder: str, *, aug: str = "image", device: str = "cpu", batches: int = 0, **options: Any
) -> Opened:
    """Return what opening `folder` took, and running until all buffers are in use and then for `batches`.

    A small loader is opened and run before, so that what any loader takes is there already. `options` are
    those of `TwoViewLoader` and `seconds`, the length of a crop.
    """
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "shards"
        repeated_shards(small, _SMALL, seconds=2 * _SECONDS)
        with open_loader(small, aug=aug, device=device) as loader:
            take(iter(loader), 1)
    forget_peak()
    peak, own = mebibytes("VmHWM"), mebibytes("RssAnon")
    started = time.perf_counter()
    with open_loader(Path(folder), aug=aug, device=device, **options) as loader:
        start_up = time.perf_counter() - started
        opening = mebibytes("VmHWM") - peak
        made = itertools.chain.from_iterable(itertools.repeat(loader))
        take(made, 1)
        first_batch = time.perf_counter() - started
        take(made, max(_MIN_BATCHES, -(-_MIN_PAIRS // loader.batch_size)) - 1)
        settled = mebibytes("RssAnon")
        take(made, batches)
        return Opened(
            start_up=start_up,
            first_batch=first_batch,
            opening=max(1.0, opening),
            running=max(1.0, settled - own),
            grown=max(1.0, mebibytes("RssAnon") - settled),
        )


def open_loader(
    folder: Path, *, aug: str = "image", seconds: float = _SECONDS, **options: Any
) -> TwoViewLoader:
    """Return a loader over the shard set in `folder`; `options` are those of `TwoViewLoader`."""
    frontend = Frontend(mel=MelConfig(seconds=seconds), mean=0.0, std=1.0)
    return TwoViewLoader(read_manifest(folder), aug=aug, frontend=frontend, **options)


def repeated_shards(
    folder: Path,
    tracks: int,
    tracks_per_shard: int = 512,
    *,
    seconds: float = _SECONDS,
    row_bytes: int | None = None,
) -> ShardSet:
    """Make full shards of at least `tracks` tracks in the new folder `folder`: one file under many names.

    With `row_bytes`, tracks.csv has so many zeros for each track instead of rows: a loader without labels
    computes its SHA-256 and reads no row.
    """
    folder.mkdir()
    pcm = np.random.default_rng(0).integers(-1000, 1000, round(seconds * _RATE)).astype(np.int16)
    encoding = Encoding(sample_rate=_RATE)
    content = encoding.encode(pcm)
    segments = [
        Segment(f"{n:06d}", Track(f"{n:06d}", f"{n:06d}.mp3", "training", "Folk"), 0, pcm, content)
        for n in range(tracks_per_shard)
    ]
    first = write_shard(folder, "training-000000", segments, encoding=encoding, labelled=True)
    count = -(-tracks // tracks_per_shard)
    shards = [first, *(_link(folder, first, number) for number in range(1, count))]
    if row_bytes is None:
        rows = [table_row(segment, "training-000000", _RATE, clipped=0) for segment in segments]
        write_tracks(folder, (dataclasses.replace(row, shard=shard.file) for shard in shards for row in rows))
    else:
        (folder / TRACKS).touch()
        os.truncate(folder / TRACKS, row_bytes * count * tracks_per_shard)
    write_rejects(folder, [])
    write_manifest(
        ShardSet(
            folder=folder,
            source="repeated",
            codec="wav",
            sample_rate=_RATE,
            classes=("Folk",),
            tags=(),
            seed=0,
            min_seconds=0.0,
            splits={"training": tuple(shards)},
            rejected={},
        )
    )
    return read_manifest(folder)


def _link(folder: Path, shard: Shard, number: int) -> Shard:
    copy = dataclasses.replace(shard, file=f"training-{number:06d}.tar", index=f"training-{number:06d}.idx")
    before, again = divmod(number, _LINKS)
    make = os.link if again else shutil.copyfile
    for old, new in ((shard.file, copy.file), (shard.index, copy.index)):
        make(folder / old.replace("000000", f"{before * _LINKS if again else 0:06d}"), folder / new)
    return copy
