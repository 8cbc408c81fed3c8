"""Shards to measure with where there are none: noise and chords, as long as FMA's clips."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet, write_manifest
from siamusic_fast.shards.plan import Track
from siamusic_fast.shards.tables import write_rejects, write_tracks
from siamusic_fast.shards.writer import Sample, Storage, write_shard

RATE = 22_050
_SECONDS = 30.0
_PER_SHARD = 128


def make_shards(folder: Path, tracks: int = 256, progress: Progress = SILENT) -> ShardSet:
    """Write `tracks` clips of 30 s, 1.3 MB each, to shards in the new folder `folder`."""
    folder.mkdir(parents=True)
    shards = []
    with progress.task("Making shards to measure with", tracks, "tracks") as task:
        for number, first in enumerate(range(0, tracks, _PER_SHARD)):
            count = min(_PER_SHARD, tracks - first)
            samples = _samples(first, count)
            shards.append(
                write_shard(
                    folder,
                    f"training-{number:06d}",
                    samples,
                    storage=Storage(sample_rate=RATE),
                    labelled=True,
                )
            )
            task.advance(count)
    shard_set = ShardSet(
        folder=folder,
        source="noise and chords",
        codec="wav",
        sample_rate=RATE,
        classes=("Folk", "Rock"),
        seed=0,
        min_seconds=5.0,
        splits={"training": tuple(shards)},
        rejected={},
    )
    write_tracks(folder, [])
    write_rejects(folder, [])
    write_manifest(shard_set)
    return shard_set


def _samples(first: int, count: int) -> Iterator[Sample]:
    time = np.arange(round(_SECONDS * RATE)) / RATE
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        pitches = 110 * 2 ** (rng.integers(0, 36, 3) / 12)
        audio = sum(np.sin(2 * np.pi * pitch * time) for pitch in pitches) / 8 + rng.normal(
            0, 0.05, len(time)
        )
        pcm = np.rint(32767 * audio.clip(-1, 1)).astype(np.int16)
        label = number % 2
        track = Track(f"{number:06d}", f"{number:06d}.wav", "training", ("Folk", "Rock")[label])
        yield Sample(track.key, track, label, pcm)
