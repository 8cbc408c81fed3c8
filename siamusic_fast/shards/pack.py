"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import REASONS, Demands
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.scan import Look, look, with_fate_of_kept
from siamusic_fast.audio.store import open_store
from siamusic_fast.config import MAX_SEED
from siamusic_fast.config.fields import Between, OneOf, Section
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import Counts, WorkerDiedError, cores, run_in_executor, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import CODECS, check_rate
from siamusic_fast.shards.manifest import MANIFEST, Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.pack_shard import COUNTED, ShardJob, pack_shard
from siamusic_fast.shards.plan import ShardPlan, plan_shards
from siamusic_fast.shards.results import ShardResult, finished_result, pass_over, passed_over, read_result
from siamusic_fast.shards.tables import REJECTED, PackedTrack, write_rejects, write_tracks
from siamusic_fast.shards.target import check_free, claim, unfinished
from siamusic_fast.shards.work import packing_work
from siamusic_fast.shards.writer import Storage


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What the bytes of a shard set depend on, besides the audio."""

    codec: Annotated[str, Section("Packing"), OneOf(tuple(CODECS))] = "wav"
    """How audio is stored. wav: crops are read without decoding; flac: lossless, about half the size; ogg:
    Vorbis, lossy, about a tenth of the size."""
    quality: Annotated[float, Between(0, 10)] = 5.0
    """Quality of Vorbis, for the codec ogg, from 0 to 10."""
    sample_rate: int = 22_050
    """Sample rate of the audio, in Hz."""
    min_seconds: Annotated[float, Between(0)] = 5.0
    """Shortest track that is packed, in seconds."""
    max_hours: float = 12.0
    """Longest file that is packed, in hours."""
    max_damage: Annotated[float, Between(0, 1)] = 0.75
    """Largest share of a file that may be lost, from 0 to 1. Other damaged files are packed and marked."""
    max_seconds: float | None = None
    """Length of the segments that longer tracks are cut into, in seconds; silent segments are dropped. None:
    tracks are kept whole."""
    tracks_per_shard: Annotated[int, Between(1)] = 512
    """Largest number of tracks in a shard; the segments of a track count as one."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of everything that is random."""

    def __post_init__(self) -> None:
        check_rate(self.codec, self.sample_rate)
        if not 0 <= self.quality <= 10:
            raise ConfigError(f"quality = {self.quality:g} must be 0 to 10.")
        _ = self.demands  # which checks itself
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

    @property
    def demands(self) -> Demands:
        """What a file has to be like to be packed."""
        return Demands(
            sample_rate=self.sample_rate,
            min_seconds=self.min_seconds,
            max_hours=self.max_hours,
            max_damage=self.max_damage,
        )

    @property
    def storage(self) -> Storage:
        """How samples are stored."""
        return Storage(sample_rate=self.sample_rate, codec=self.codec, quality=self.quality)


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


def pack(
    corpus: Corpus,
    folder: Path,
    config: PackConfig | None = None,
    *,
    procs: int | None = None,
    executor: Executor | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    watch: Callable[[PackStatus], None] = lambda status: None,
) -> ShardSet:
    """Pack `corpus` into `folder`, with as many processes as there are cores unless `procs` says otherwise.

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
    work = packing_work(corpus, found, len(plans), dataclasses.asdict(config))
    try:
        with claim(folder, work, force) as results:
            if not (folder / MANIFEST).exists():
                jobs = _jobs(corpus, folder, results, config, found, plans)
                observer = _Observer(found, progress, watch)
                _run(jobs, observer, procs or cores(), executor)
                _write_tables(corpus, folder, config, jobs, found)
    except OSError as error:
        state = unfinished(folder)
        rest = f" from the {state.finished} shards that are finished" if state and state.finished else ""
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}. When that is mended, the same command "
            f"goes on{rest}."
        ) from None
    return read_manifest(folder)


def _jobs(
    corpus: Corpus,
    folder: Path,
    results: Path,
    config: PackConfig,
    found: Look,
    plans: Iterable[ShardPlan],
) -> list[ShardJob]:
    sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
    labels = {genre: label for label, genre in enumerate(corpus.classes)}
    deadly = passed_over(results)
    return [
        ShardJob(
            audio=corpus.folder,
            folder=folder,
            results=results,
            plan=plan,
            sizes=tuple(sizes[track.path] for track in plan.tracks),
            passed_over=deadly,
            labels=labels,
            demands=config.demands,
            storage=config.storage,
            max_seconds=config.max_seconds,
        )
        for plan in plans
    ]


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
        now = dict(zip(COUNTED, counts, strict=True))
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


def _run(jobs: list[ShardJob], observer: _Observer, procs: int, executor: Executor | None) -> None:
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

        on_counts((0,) * len(COUNTED))
        if executor:
            run_in_executor(pack_shard, todo, executor, counters=len(COUNTED), on_counts=on_counts)
        elif todo:
            try:
                run_in_processes(pack_shard, todo, procs=procs, counters=len(COUNTED), on_counts=on_counts)
            except WorkerDiedError as error:
                raise _named(error, todo) from None


def _named(error: WorkerDiedError, jobs: Sequence[ShardJob]) -> DataError:
    """Return the error that names the file at which a worker died, and let the next run pass it over."""
    if error.job is None or error.step >= len(jobs[error.job].plan.tracks):
        return error
    job = jobs[error.job]
    path = job.plan.tracks[error.step].path
    pass_over(job.results, path)
    return DataError(
        f"a worker process died ({error.how}) while it decoded {path}: the same command goes on without that "
        f"file; --force starts over and tries it again."
    )


def _write_tables(
    corpus: Corpus, folder: Path, config: PackConfig, jobs: Iterable[ShardJob], found: Look
) -> None:
    """Put the results of all jobs together, one at a time."""
    rejects = list(found.rejects)
    splits: dict[str, list[Shard]] = defaultdict(list)

    def tracks() -> Iterator[PackedTrack]:
        for job in jobs:
            result = read_result(job.results, job.plan.stem)
            rejects.extend(result.rejects)
            if result.shard:
                splits[job.plan.split].append(result.shard)
            yield from result.tracks

    write_tracks(folder, tracks())
    write_rejects(folder, with_fate_of_kept(rejects, found))
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
