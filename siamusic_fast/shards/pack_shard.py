"""One planned shard: its tracks are decoded, judged, and packed or listed with a reason."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from siamusic_fast.audio.corpus import Track
from siamusic_fast.audio.decode import REASONS, AudioError, DecodeConfig, Decoded, decode_planned
from siamusic_fast.audio.pcm import is_silent, peak
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.store import Store, open_store
from siamusic_fast.processes.pool import Count
from siamusic_fast.shards.codec import pcm_bytes
from siamusic_fast.shards.plan import ShardPlan
from siamusic_fast.shards.results import ShardResult, write_result
from siamusic_fast.shards.tables import PackedTrack
from siamusic_fast.shards.writer import Sample, Storage, write_shard

COUNTED = ("files", "bytes", *REASONS)
"""What workers count: see `pool.Counts`."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that it takes to write one shard, anywhere: give it to `pack_shard`."""

    audio: Path
    """Folder or zip of the corpus."""
    folder: Path
    """Folder of the shard set."""
    results: Path
    """Folder where the result of each shard is kept until all are done."""
    plan: ShardPlan
    sizes: tuple[int, ...]
    """In bytes, that the files of its tracks had when they were planned."""
    passed_over: frozenset[str]
    """Paths of files at which a worker process died in an earlier run."""
    labels: dict[str, int]
    """Label of every genre."""
    demands: DecodeConfig
    storage: Storage
    max_seconds: float | None
    """Length of the segments that longer tracks are cut into; None: they are kept whole."""


def pack_shard(job: ShardJob, count: Count = lambda counts: None) -> ShardResult:
    """Decode, judge and write the tracks of one shard, one at a time; calls `count` once after each."""
    tracks: list[PackedTrack] = []
    rejects: list[Reject] = []
    samples = _samples(job, tracks, rejects, count)
    first = next(samples, None)
    shard = None
    if first:
        shard = write_shard(
            job.folder,
            job.plan.stem,
            itertools.chain([first], samples),
            storage=job.storage,
            labelled=job.plan.labelled,
        )
    result = ShardResult(shard=shard, tracks=tuple(tracks), rejects=tuple(rejects))
    write_result(job.results, job.plan.stem, result)
    return result


def segments(samples: int, sample_rate: int, min_seconds: float, max_seconds: float | None) -> list[range]:
    """Return where a track of `samples` is cut: after every `max_seconds`, the last piece being shorter.

    The last piece is dropped if it is shorter than `min_seconds`; the first is never.
    """
    if max_seconds is None:
        return [range(samples)]
    length = round(max_seconds * sample_rate)
    pieces = [range(start, min(start + length, samples)) for start in range(0, samples, length)]
    return [piece for piece in pieces if not piece.start or len(piece) >= min_seconds * sample_rate]


def _samples(
    job: ShardJob, tracks: list[PackedTrack], rejects: list[Reject], count: Count
) -> Iterator[Sample]:
    """Yield what is fit, and enter every track into `tracks` or `rejects`."""
    store = open_store(job.audio)
    for track, size in zip(job.plan.tracks, job.sizes, strict=True):
        counts = Counter({"files": 1})
        try:
            decoded = _decode(job, store, track, size)
        except AudioError as error:
            rejects.append(Reject(track.path, error.reason, error.detail))
            counts[error.reason] += 1
        else:
            counts["bytes"] = decoded.bytes_read
            before = len(tracks)
            for sample, row in _cut(job, track, decoded):
                tracks.append(row)
                yield sample
            if len(tracks) == before:
                rejects.append(Reject(track.path, "silent", "each of its segments"))
                counts["silent"] += 1
        count(tuple(counts[name] for name in COUNTED))


def _decode(job: ShardJob, store: Store, track: Track, size: int) -> Decoded:
    if track.path in job.passed_over:
        raise AudioError(track.path, "error", "a worker process died while it decoded this file")
    return decode_planned(store, track.path, size, job.demands)


def _cut(job: ShardJob, track: Track, decoded: Decoded) -> Iterator[tuple[Sample, PackedTrack]]:
    """Yield the segments of `track` that are not silent, or all of it, each with its row."""
    pcm = decoded.pcm
    rate = job.demands.sample_rate
    row = _row(job, track, decoded)
    pieces = segments(pcm.length, rate, job.demands.min_seconds, job.max_seconds)
    for number, piece in enumerate(pieces):
        part = pcm.read(piece.start, piece.stop)
        if len(part) < pcm.length and is_silent(peak(part)):
            continue
        offset = piece.start / rate
        key = track.key if job.max_seconds is None else f"{track.key}-{number:04d}"
        sample = Sample(
            key=key,
            track=track,
            label=job.labels.get(track.genre, -1),
            pcm=part,
            offset=None if job.max_seconds is None else offset,
        )
        clipped = (piece.start <= pcm.clipped) & (pcm.clipped < piece.stop)
        yield (
            sample,
            replace(
                row,
                key=key,
                offset=offset,
                seconds=len(part) / rate,
                samples=len(part),
                clipped=int(clipped.sum()),
                sha256=hashlib.sha256(pcm_bytes(part)).hexdigest(),
            ),
        )


def _row(job: ShardJob, track: Track, decoded: Decoded) -> PackedTrack:
    """Return what is the same in the rows of all segments of a track."""
    promised = decoded.seconds_promised
    return PackedTrack(
        key=track.key,
        track_id=track.key,
        offset=0.0,
        split=track.split,
        genre=track.genre,
        seconds=decoded.seconds,
        samples=decoded.pcm.length,
        clipped=len(decoded.pcm.clipped),
        shard=f"{job.plan.stem}.tar",
        path=track.path,
        sha256="",
        seconds_promised=promised,
        seconds_missing=max(0.0, (promised or 0.0) - decoded.seconds),
        damaged_packets=decoded.damaged_packets,
        channel=decoded.downmix.channel,
        gain=decoded.downmix.gain,
    )
