"""Makes audio and shards to measure with where there are none: noise and chords, as long as FMA's clips."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack

_RECORDINGS = 8
"""Number of different recordings; the files of a corpus are these under different tags."""
_SAMPLE_RATES = {"mp3": 44_100, "wav": PackConfig.sample_rate}
_GENRES = ("Folk", "Rock")


def tracks_for(batch_size: int) -> int:
    """Return how many tracks to measure batches of that size with: each epoch drops a part of a batch."""
    return max(256, 8 * batch_size)


def make_shards(
    folder: Path,
    tracks: int,
    *,
    seconds: float = 30.0,
    tracks_per_shard: int = 128,
    progress: Progress = SILENT,
) -> ShardSet:
    """Pack `tracks` clips into a folder in `folder`: 1.3 MB each if they last 30 s."""
    corpus = make_corpus(folder / "audio", tracks, "wav", seconds, progress)
    config = PackConfig(tracks_per_shard=tracks_per_shard, min_seconds=min(seconds, PackConfig.min_seconds))
    with ThreadPoolExecutor() as threads:  # which start faster than processes
        return pack(corpus, folder / "shards", config, executor=threads, progress=progress)


def make_corpus(
    folder: Path, tracks: int, kind: str, seconds: float = 30.0, progress: Progress = SILENT
) -> Corpus:
    """Write stereo files, `kind` mp3 at 44.1 kHz or wav at 22.05 kHz, of which no two are equal."""
    folder.mkdir(parents=True)
    rate, encoded = _SAMPLE_RATES[kind], folder / f"encoded.{kind}"
    with progress.task("Making audio to measure with", tracks, "files") as task:
        for recording in range(min(tracks, _RECORDINGS)):
            rng = np.random.default_rng(recording)
            time = np.arange(round(seconds * rate)) / rate
            pitches = 110 * 2 ** (rng.integers(0, 36, 4) / 12)
            chord = np.sin(2 * np.pi * pitches[:, None] * time).sum(axis=0) / 8
            stereo = np.stack([chord, chord * 0.8], axis=1) + rng.normal(0, 0.05, (len(time), 2))
            soundfile.write(encoded, stereo.clip(-1, 1), rate)
            content = encoded.read_bytes()
            for number in range(recording, tracks, _RECORDINGS):
                # An ID3v1 tag: it takes the last 128 bytes of a file, and the title 30 of them.
                tag = b"TAG" + f"{number}".encode().ljust(125, b"\0")
                (folder / f"{number:06d}.{kind}").write_bytes(content + tag)
                task.advance()
    encoded.unlink()
    names = [f"{number:06d}" for number in range(tracks)]
    listed = (Track(name, f"{name}.{kind}", "training", _GENRES[int(name) % 2]) for name in names)
    return Corpus(name="noise and chords", folder=folder, tracks=tuple(listed))
