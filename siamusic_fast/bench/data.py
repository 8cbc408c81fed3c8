"""Shards to measure with where there are none: noise and chords, as long as FMA's clips."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet, write_manifest
from siamusic_fast.shards.plan import Track
from siamusic_fast.shards.tables import write_rejects, write_tracks
from siamusic_fast.shards.writer import Sample, Storage, write_shard

RATE = 22_050
Pcm = NDArray[np.int16]

_CLIPS = 4
"""Recordings that are made; tracks begin at different moments of them, and some are upside down."""


def tracks_for(batch_size: int) -> int:
    """Return how many tracks batches of that size are measured with: some of each epoch sit out."""
    return max(256, 8 * batch_size)


def make_shards(
    folder: Path,
    tracks: int = 256,
    *,
    seconds: float = 30.0,
    per_shard: int = 128,
    progress: Progress = SILENT,
) -> ShardSet:
    """Write `tracks` clips, of 1.3 MB each if they last 30 s, to shards in the new folder `folder`."""
    clips = _clips(seconds)
    folder.mkdir(parents=True)
    shards = []
    with progress.task("Making shards to measure with", tracks, "tracks") as task:
        for number, first in enumerate(range(0, tracks, per_shard)):
            count = min(per_shard, tracks - first)
            samples = _samples(clips, first, count)
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
        min_seconds=0.0,
        splits={"training": tuple(shards)},
        rejected={},
    )
    write_tracks(folder, [])
    write_rejects(folder, [])
    write_manifest(shard_set)
    return shard_set


def _clips(seconds: float) -> list[Pcm]:
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE)) / RATE
    clips = []
    for _ in range(_CLIPS):
        pitches = 110 * 2 ** (rng.integers(0, 36, 3) / 12)
        chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in pitches) / 8
        audio = chord + rng.normal(0, 0.05, len(time))
        clips.append(np.rint(32767 * audio.clip(-1, 1)).astype(np.int16))
    return clips


def _samples(clips: list[Pcm], first: int, count: int) -> Iterator[Sample]:
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        clip = clips[number % len(clips)]
        pcm = np.roll(clip, rng.integers(len(clip))) * np.int16(rng.choice([-1, 1]))
        label = number % 2
        track = Track(f"{number:06d}", f"{number:06d}.wav", "training", ("Folk", "Rock")[label])
        yield Sample(track.key, track, label, pcm)
