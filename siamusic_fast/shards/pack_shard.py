"""One planned shard: its tracks are decoded, judged, and packed or listed with a reason."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.audio.corpus import Track
from siamusic_fast.audio.decode import (
    REASONS,
    AudioError,
    DecodeConfig,
    Decoded,
    decode_planned,
    failures_of,
)
from siamusic_fast.audio.pcm import is_silent, peak
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.store import open_store
from siamusic_fast.errors import DataError
from siamusic_fast.processes.pool import Count
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.plan import ShardPlan
from siamusic_fast.shards.resuming import ShardResult, write_result
from siamusic_fast.shards.tables import PackedTrack
from siamusic_fast.shards.upload import upload_shard, upload_state
from siamusic_fast.shards.write_shard import Segment, table_row, write_shard

COUNTED = ("files", "bytes", *REASONS)
"""What workers count, in this order (see `pool.Counts`)."""


@dataclass(frozen=True, kw_only=True)
class ShardToPack:
    """All that `pack_shard` needs to write one shard, in any process."""

    audio: Path | str
    """Folder or zip of the corpus, or the URL of a folder."""
    in_tables: bool = False
    """Whether the tracks are rows of Parquet or Arrow files."""
    folder: Path
    """Folder of the shard set, or the one that its shards are uploaded from."""
    url: str = ""
    """Where its shards are uploaded to; empty if they stay in `folder`."""
    packing: str
    """What it is packed for, as `packing_digest` says it."""
    permit: Path | None = None
    """File without which it must not be written any more; None if nobody else may pack into `folder`."""
    plan: ShardPlan
    sizes: tuple[int, ...]
    """Sizes in bytes that the files of its tracks had when they were planned."""
    crashed: frozenset[str]
    """Paths of files at which every worker process dies."""
    labels: dict[str, int]
    """Label of every genre."""
    demands: DecodeConfig
    encoding: Encoding
    max_seconds: float | None
    """Length in seconds of the segments that longer tracks are cut into; None keeps tracks whole."""
    writer: str = ""
    """Name of who writes the shard, if others may write it at the same time, see `atomic_write`."""

    def only(self, place: int) -> "ShardToPack":
        """Return the same with the track at `place` alone."""
        plan = dataclasses.replace(self.plan, tracks=(self.plan.tracks[place],))
        return dataclasses.replace(self, plan=plan, sizes=(self.sizes[place],))


def pack_shard(job: ShardToPack, count: Count = lambda counts: None) -> None:
    """Decode, judge and write the tracks of one shard, one at a time; calls `count` once after each.

    If the job has a `url`, the shard is uploaded when it is written.
    """
    tracks: list[PackedTrack] = []
    rejects: list[Reject] = []
    segments = _fit_segments(job, tracks, rejects, count)
    shard = None
    if first := next(segments, None):
        shard = write_shard(
            job.folder,
            job.plan.stem,
            itertools.chain([first], segments, _end_without_permit(job)),
            encoding=job.encoding,
            labelled=job.plan.labelled,
            writer=job.writer,
        )
        if job.url:
            upload_shard(job.folder, job.url, shard)
    result = ShardResult(packing=job.packing, shard=shard, tracks=tuple(tracks), rejects=tuple(rejects))
    for _ in _end_without_permit(job):
        pass
    write_result(job.folder, job.plan.stem, result, job.writer)
    if job.url:
        upload_state(job.folder, job.url, f"{job.plan.stem}.json")


def _end_without_permit(job: ShardToPack) -> Iterator[Segment]:
    """Yield nothing; raise `DataError` if the permit is gone. To open it asks a file server anew."""
    if job.permit:
        try:
            job.permit.open().close()
        except OSError:
            raise DataError(f"{job.folder} is not being packed any more: this worker stops.") from None
    yield from ()


def decode_alone(job: ShardToPack, count: Count) -> None:
    """Decode, judge and encode the tracks of one shard, and write nothing.

    Calls `count` before the first track too: a process that dies earlier does not die of a track.
    """
    count((0,) * len(COUNTED))
    for _ in _fit_segments(job, [], [], count):
        pass


def cut(samples: int, sample_rate: int, min_seconds: float, max_seconds: float | None) -> list[range]:
    """Return the pieces that a track of `samples` is cut into: `max_seconds` each, the last one shorter.

    The last piece is dropped if it is shorter than `min_seconds`, unless it is the only one.
    """
    if max_seconds is None:
        return [range(samples)]
    length = round(max_seconds * sample_rate)
    pieces = [range(start, min(start + length, samples)) for start in range(0, samples, length)]
    return [piece for piece in pieces if not piece.start or len(piece) >= min_seconds * sample_rate]


def _fit_segments(
    job: ShardToPack, tracks: list[PackedTrack], rejects: list[Reject], count: Count
) -> Iterator[Segment]:
    """Yield the segments that are fit, and add every track to `tracks` or `rejects`."""
    store = open_store(job.audio, job.in_tables)
    for track, size in zip(job.plan.tracks, job.sizes, strict=True):
        counts = Counter({"files": 1})
        try:
            if track.path in job.crashed:
                raise AudioError(track.path, "error", "worker processes died while they decoded this file")
            decoded = decode_planned(store, track.path, size, job.demands)
            counts["bytes"] = decoded.bytes_read
            before = len(tracks)
            for segment, row in _segments(job, track, decoded):
                tracks.append(row)
                yield segment
            if len(tracks) == before:
                raise AudioError(track.path, "silent", "each of its segments")
        except AudioError as error:
            rejects.append(Reject(track.path, error.reason, error.detail))
            counts[error.reason] += 1
        count(tuple(counts[name] for name in COUNTED))


def _segments(job: ShardToPack, track: Track, decoded: Decoded) -> Iterator[tuple[Segment, PackedTrack]]:
    """Yield the segments of `track` that are not silent, or all of it, each with its row of tracks.csv."""
    pcm, rate = decoded.pcm, job.encoding.sample_rate
    for number, piece in enumerate(cut(pcm.length, rate, job.demands.min_seconds, job.max_seconds)):
        with failures_of(track.path):
            part = pcm.read(piece.start, piece.stop)
            if len(part) < pcm.length and is_silent(peak(part)):
                continue
            segment = Segment(
                key=track.key if job.max_seconds is None else f"{track.key}-{number:04d}",
                track=track,
                label=job.labels.get(track.genre, -1),
                pcm=part,
                content=job.encoding.encode(part),
                offset=None if job.max_seconds is None else piece.start / rate,
            )
            row = _row(job, segment, piece, decoded)
        yield segment, row


def _row(job: ShardToPack, segment: Segment, piece: range, decoded: Decoded) -> PackedTrack:
    clipped, promised = decoded.pcm.clipped, decoded.seconds_promised
    return table_row(
        segment,
        job.plan.stem,
        job.encoding.sample_rate,
        clipped=int(((piece.start <= clipped) & (clipped < piece.stop)).sum()),
        seconds_promised=promised,
        seconds_missing=max(0.0, (promised or 0.0) - decoded.seconds),
        damaged_packets=decoded.damaged_packets,
        channel=decoded.downmix.channel,
        gain=decoded.downmix.gain,
    )
