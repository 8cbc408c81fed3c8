"""Shards to measure with where there are none: noise and chords, as long as FMA's clips."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.audio.corpus import Track
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import Encoding, pcm_bytes
from siamusic_fast.shards.manifest import Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.tables import PackedTrack, write_rejects, write_tracks
from siamusic_fast.shards.write_shard import Segment, write_shard

RATE = 22_050
Pcm = NDArray[np.int16]
_CLASSES = ("Folk", "Rock")

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
    shards, rows = [], list[PackedTrack]()
    with progress.task("Making shards to measure with", tracks, "tracks") as task:
        for number, first in enumerate(range(0, tracks, per_shard)):
            count = min(per_shard, tracks - first)
            stem = f"training-{number:06d}"
            samples = list(_samples(clips, first, count))
            encoding = Encoding(sample_rate=RATE)
            shards.append(write_shard(folder, stem, samples, encoding=encoding, labelled=True))
            rows += [packed_track(sample, shards[-1].file, pcm_sha256(sample.pcm)) for sample in samples]
            task.advance(count)
    return described(folder, "noise and chords", shards, rows)


def described(folder: Path, source: str, shards: Sequence[Shard], rows: Iterable[PackedTrack]) -> ShardSet:
    """Write the tables and the manifest beside `shards` in `folder`; return them as a shard set."""
    write_tracks(folder, rows)
    write_rejects(folder, [])
    write_manifest(
        ShardSet(
            folder=folder,
            source=source,
            codec="wav",
            sample_rate=RATE,
            classes=_CLASSES,
            seed=0,
            min_seconds=0.0,
            splits={"training": tuple(shards)},
            rejected={},
        )
    )
    return read_manifest(folder)


def packed_track(sample: Segment, shard: str, sha256: str) -> PackedTrack:
    """Return the row of tracks.csv on a whole track in `shard`, whose samples have that SHA-256."""
    return PackedTrack(
        key=sample.key,
        track_id=sample.key,
        offset=0.0,
        split=sample.track.split,
        genre=sample.track.genre,
        seconds=len(sample.pcm) / RATE,
        samples=len(sample.pcm),
        clipped=0,
        shard=shard,
        path=sample.track.path,
        sha256=sha256,
    )


def pcm_sha256(pcm: Pcm) -> str:
    """Return the SHA-256 of samples, as tracks.csv has it."""
    return hashlib.sha256(pcm_bytes(pcm)).hexdigest()


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


def _samples(clips: list[Pcm], first: int, count: int) -> Iterator[Segment]:
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        clip = clips[number % len(clips)]
        pcm = np.roll(clip, rng.integers(len(clip))) * np.int16(rng.choice([-1, 1]))
        label = number % 2
        track = Track(f"{number:06d}", f"{number:06d}.wav", "training", _CLASSES[label])
        yield Segment(track.key, track, label, pcm)
