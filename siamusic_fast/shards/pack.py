"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import hashlib
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import soxr

import siamusic_fast
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import check_rate, pcm_bytes
from siamusic_fast.shards.decode import REASONS, AudioError, Pcm, decode_planned, is_silent
from siamusic_fast.shards.look import Look, look
from siamusic_fast.shards.manifest import MANIFEST, Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.plan import Corpus, ShardPlan, Track, plan_shards
from siamusic_fast.shards.pool import Count, Counts, cores, run_in_executor, run_in_processes
from siamusic_fast.shards.results import ShardResult, finished_result, read_result, write_result
from siamusic_fast.shards.store import open_store
from siamusic_fast.shards.tables import REJECTED, PackedTrack, Reject, write_rejects, write_tracks
from siamusic_fast.shards.target import check_free, claim, unfinished
from siamusic_fast.shards.writer import Sample, Storage, write_shard

_COUNTED = ("files", "bytes", *REASONS)
"""What workers count: see `pool.Counts`."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What the bytes of a shard set depend on, besides the audio."""

    codec: str = "wav"
    """One of `codec.CODECS`."""
    quality: float = 5.0
    """Of Vorbis, for the codec ogg: 0 to 10."""
    sample_rate: int = 22_050
    """Of the packed audio, in Hz."""
    min_seconds: float = 5.0
    """Shorter tracks are left out."""
    max_seconds: float | None = None
    """Longer tracks are cut into segments, see `segments`; None: they are kept whole.

    Silent segments are dropped; a track is left out if all of its segments are silent.
    """
    tracks_per_shard: int = 512
    """At most; the segments of a track count as one."""
    seed: int = 0
    """Of the shuffle."""

    def __post_init__(self) -> None:
        check_rate(self.codec, self.sample_rate)
        if not 0 <= self.quality <= 10:
            raise ConfigError(f"quality = {self.quality:g} must be 0 to 10.")
        if not (self.min_seconds >= 0 and math.isfinite(self.min_seconds)):
            raise ConfigError(f"min_seconds = {self.min_seconds:g} must be 0 or more.")
        if self.max_seconds is not None and not (
            math.isfinite(self.max_seconds)
            and self.max_seconds >= self.min_seconds
            and self.max_seconds * self.sample_rate >= 1
        ):
            raise ConfigError(
                f"max_seconds = {self.max_seconds:g} must be above 0 and no less than "
                f"min_seconds = {self.min_seconds:g}."
            )
        if self.tracks_per_shard < 1:
            raise ConfigError(f"tracks_per_shard = {self.tracks_per_shard} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class PackStatus:
    """How far a pack has come."""

    total: int
    """Files to be decoded."""
    files: int
    """Of those, decoded, by this run or one before it."""
    files_now: int
    """Decoded by this run."""
    bytes_now: int
    """What this run has read of them."""
    seconds: float
    """That this run has been decoding."""
    rejected: dict[str, int]
    """Left out so far by reason code."""

    @property
    def files_per_second(self) -> float:
        """Of this run."""
        return self.files_now / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Of this run; of compressed audio, 1,000,000 bytes each."""
        return self.bytes_now / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """As it went so far; None if nothing has been decoded yet."""
        return (self.total - self.files) / self.files_per_second if self.files_now else None

    def words(self) -> str:
        """Return the rates and the rejects as one line."""
        rates = f"{self.files_per_second:.1f} tracks/s, {self.megabytes_per_second:.1f} MB/s"
        return f"{rates}, left out: {_count_words(self.rejected)}" if self.rejected else rates


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that it takes to write one shard, anywhere: give it to `pack_shard`."""

    audio: Path
    """Folder or zip of the corpus."""
    folder: Path
    """Of the shard set."""
    results: Path
    plan: ShardPlan
    sizes: tuple[int, ...]
    """In bytes, that the files of its tracks had when they were planned."""
    labels: dict[str, int]
    """Of every genre."""
    config: PackConfig


def pack(
    corpus: Corpus,
    folder: Path,
    config: PackConfig | None = None,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    watch: Callable[[PackStatus], None] = lambda status: None,
) -> ShardSet:
    """Pack `corpus` into `folder`, with as many processes as there are cores unless `workers` says otherwise.

    Or on any `executor`, whose workers see the audio and `folder` under the same paths. Bytes depend on the
    audio, its metadata and `config` only. The plan covers every file that is there; a track that turns out
    unfit leaves its shard one smaller, and a shard without any track is not written. Files are written
    atomically, the manifest last. Shards that an earlier call with the same arguments finished before it was
    stopped are not done again. `watch` hears now and then how far it is.

    Raises `DataError` if nothing can be packed, if `folder` cannot be used (see `target.claim`), or if a file
    that the plan has seen is no longer there or has another size; what is finished stays.
    """
    config = config or PackConfig()
    check_free(folder, force)
    found = look(corpus, open_store(corpus.folder), progress)
    if not found.tracks:
        raise DataError(
            f"{corpus.folder} holds none of the {len(corpus.tracks)} tracks of {corpus.name}, such as "
            f"{corpus.tracks[0].path}: {_count_words(_count(found.rejects))}."
        )
    plans = plan_shards(found.tracks, tracks_per_shard=config.tracks_per_shard, seed=config.seed)
    work = _work(corpus, found, plans, config)
    try:
        with claim(folder, work, force) as results:
            if not (folder / MANIFEST).exists():
                labels = {genre: label for label, genre in enumerate(corpus.classes)}
                sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
                jobs = [
                    ShardJob(
                        audio=corpus.folder,
                        folder=folder,
                        results=results,
                        plan=plan,
                        sizes=tuple(sizes[track.path] for track in plan.tracks),
                        labels=labels,
                        config=config,
                    )
                    for plan in plans
                ]
                observer = _Observer(found, progress, watch)
                _run(jobs, observer, workers or cores(), executor)
                _write_tables(corpus, folder, config, jobs, found.rejects)
    except OSError as error:
        state = unfinished(folder)
        rest = f" from the {state.finished} shards that are finished" if state and state.finished else ""
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}. When that is mended, the same command "
            f"goes on{rest}."
        ) from None
    return read_manifest(folder)


def pack_shard(job: ShardJob, count: Count = lambda counts: None) -> ShardResult:
    """Decode, judge and write the tracks of one shard, one at a time; calls `count` after each."""
    tracks: list[PackedTrack] = []
    rejects: list[Reject] = []
    samples = _samples(job, tracks, rejects, count)
    first = next(samples, None)
    shard = None
    if first:
        storage = Storage(
            sample_rate=job.config.sample_rate, codec=job.config.codec, quality=job.config.quality
        )
        shard = write_shard(
            job.folder,
            job.plan.stem,
            itertools.chain([first], samples),
            storage=storage,
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
            pcm = decode_planned(store, track.path, size, job.config.sample_rate, job.config.min_seconds)
        except AudioError as error:
            rejects.append(Reject(track.path, error.reason, error.detail))
            counts[error.reason] += 1
        else:
            counts["bytes"] = pcm.bytes_read
            before = len(tracks)
            for sample, row in _cut(job, track, pcm):
                tracks.append(row)
                yield sample
            if len(tracks) == before:
                rejects.append(Reject(track.path, "silent", "each of its segments"))
                counts["silent"] += 1
        count(tuple(counts[name] for name in _COUNTED))


def _cut(job: ShardJob, track: Track, pcm: Pcm) -> Iterator[tuple[Sample, PackedTrack]]:
    """Yield the segments of `track` that are not silent, or all of it, each with its row."""
    config = job.config
    pieces = segments(len(pcm.samples), config.sample_rate, config.min_seconds, config.max_seconds)
    for number, piece in enumerate(pieces):
        part = pcm.samples[piece.start : piece.stop]
        if len(part) < len(pcm.samples) and is_silent(part):
            continue
        offset = piece.start / config.sample_rate
        key = track.key if config.max_seconds is None else f"{track.key}-{number:04d}"
        sample = Sample(
            key=key,
            track=track,
            label=job.labels.get(track.genre, -1),
            pcm=part,
            offset=None if config.max_seconds is None else offset,
        )
        clipped = (piece.start <= pcm.clipped) & (pcm.clipped < piece.stop)
        yield (
            sample,
            PackedTrack(
                key=key,
                track_id=track.key,
                offset=offset,
                split=track.split,
                genre=track.genre,
                seconds=len(part) / config.sample_rate,
                samples=len(part),
                clipped=int(clipped.sum()),
                shard=f"{job.plan.stem}.tar",
                path=track.path,
                sha256=hashlib.sha256(pcm_bytes(part)).hexdigest(),
            ),
        )


class _Observer:
    """Turns what workers count into progress and `PackStatus`."""

    def __init__(self, found: Look, progress: Progress, watch: Callable[[PackStatus], None]) -> None:
        self.total = len(found.tracks)
        self.progress = progress
        self._watch = watch
        self._rejected = Counter(reject.reason for reject in found.rejects)
        self._files_before = 0
        self._start = time.monotonic()

    def finished_before(self, files: int, result: ShardResult) -> None:
        """Enter a shard that was finished by an earlier run."""
        self._files_before += files
        self._rejected.update(reject.reason for reject in result.rejects)

    def status(self, counts: Counts) -> PackStatus:
        now = dict(zip(_COUNTED, counts, strict=True))
        rejected = {reason: self._rejected[reason] + now[reason] for reason in REASONS}
        status = PackStatus(
            total=self.total,
            files=self._files_before + now["files"],
            files_now=now["files"],
            bytes_now=now["bytes"],
            seconds=time.monotonic() - self._start,
            rejected={reason: count for reason, count in rejected.items() if count},
        )
        self._watch(status)
        return status


def _run(jobs: list[ShardJob], observer: _Observer, workers: int, executor: Executor | None) -> None:
    """Do the `jobs` that are not finished."""
    todo = []
    for job in jobs:
        if result := finished_result(job.folder, job.results, job.plan.stem):
            observer.finished_before(len(job.plan.tracks), result)
        else:
            todo.append(job)
    with observer.progress.task("Packing", observer.total, "tracks") as task:
        reported = 0

        def on_counts(counts: Counts) -> None:
            nonlocal reported
            status = observer.status(counts)
            if status.files > reported:
                task.advance(status.files - reported, note=status.words())
                reported = status.files

        on_counts((0,) * len(_COUNTED))
        if executor:
            run_in_executor(pack_shard, todo, executor, counters=len(_COUNTED), on_counts=on_counts)
        elif todo:
            run_in_processes(pack_shard, todo, workers=workers, counters=len(_COUNTED), on_counts=on_counts)


def _work(corpus: Corpus, found: Look, plans: Sequence[ShardPlan], config: PackConfig) -> dict[str, Any]:
    """Return all that the result depends on, as plain values.

    Files are told by their name, size, and when they were modified or, in a zip, their checksum.
    """
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update("\0".join(map(str, values)).encode("utf-8", "surrogateescape") + b"\0\0")

    for track, size, stamp in zip(found.tracks, found.sizes, found.stamps, strict=True):
        add(track.key, track.path, track.split, track.genre, size, stamp)
    for reject in found.rejects:
        add(reject.path, reject.reason, reject.detail)
    add(*corpus.classes)
    return {
        **dataclasses.asdict(config),
        "source": corpus.name,
        "software": _software(),
        "shards": len(plans),
        "inputs": digest.hexdigest(),
    }


def _software() -> str:
    """Return the versions of what makes samples of files: another may decode the same file otherwise."""
    return (
        f"siamusic-fast {siamusic_fast.__version__}, libsndfile {soundfile.__libsndfile_version__}, "
        f"soxr {soxr.__version__}"
    )


def _write_tables(
    corpus: Corpus, folder: Path, config: PackConfig, jobs: Iterable[ShardJob], rejects: list[Reject]
) -> None:
    """Put the results of all jobs together, one at a time."""
    splits: dict[str, list[Shard]] = defaultdict(list)

    def tracks() -> Iterator[PackedTrack]:
        for job in jobs:
            result = read_result(job.results, job.plan.stem)
            rejects.extend(result.rejects)
            if result.shard:
                splits[job.plan.split].append(result.shard)
            yield from result.tracks

    write_tracks(folder, tracks())
    write_rejects(folder, rejects)
    rejected = _count(rejects)
    if not splits:
        raise DataError(
            f"nothing to pack: every file of {corpus.folder} was left out ({_count_words(rejected)}), "
            f"see {folder / REJECTED}."
        )
    shard_set = ShardSet(
        folder=folder,
        source=corpus.name,
        codec=config.codec,
        sample_rate=config.sample_rate,
        classes=corpus.classes,
        seed=config.seed,
        min_seconds=config.min_seconds,
        splits={split: tuple(shards) for split, shards in splits.items()},
        rejected=rejected,
        max_seconds=config.max_seconds,
        quality=config.quality if config.codec == "ogg" else None,
    )
    write_manifest(shard_set)


def _count(rejects: Iterable[Reject]) -> dict[str, int]:
    """Return the number of rejects by reason, in the order of `REASONS`."""
    counts = Counter(reject.reason for reject in rejects)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _count_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
