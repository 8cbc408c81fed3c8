"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.decode import REASONS, AudioError, decode_pcm
from siamusic_fast.shards.manifest import Shard, ShardSet, write_manifest
from siamusic_fast.shards.plan import Corpus, ShardPlan, Track, plan_shards
from siamusic_fast.shards.pool import cores, run_jobs
from siamusic_fast.shards.tables import REJECTED, PackedTrack, Reject, write_rejects, write_tracks
from siamusic_fast.shards.target import claim
from siamusic_fast.shards.writer import Sample, pcm_bytes, write_shard


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What the bytes of a shard set depend on, besides the audio."""

    sample_rate: int = 22_050
    """Of the packed audio, in Hz."""
    min_seconds: float = 5.0
    """Shorter tracks are left out."""
    tracks_per_shard: int = 512
    """At most."""
    seed: int = 0
    """Of the shuffle."""

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ConfigError(f"sample_rate = {self.sample_rate} must be at least 1 Hz.")
        if not (self.min_seconds >= 0 and math.isfinite(self.min_seconds)):
            raise ConfigError(f"min_seconds = {self.min_seconds:g} must be 0 or more.")
        if self.tracks_per_shard < 1:
            raise ConfigError(f"tracks_per_shard = {self.tracks_per_shard} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that it takes to write one shard, anywhere."""

    audio_folder: Path
    folder: Path
    plan: ShardPlan
    labels: dict[str, int]
    """Of every genre."""
    config: PackConfig


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What came of one job; `shard` is None if no track was fit."""

    shard: Shard | None
    tracks: tuple[PackedTrack, ...]
    rejects: tuple[Reject, ...]


def pack(
    corpus: Corpus,
    folder: Path,
    config: PackConfig | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ShardSet:
    """Pack `corpus` into `folder`, with as many processes as there are cores unless `workers` says otherwise.

    Bytes depend on the audio, its metadata and `config` only. The plan covers every file that is there; a
    track that turns out unfit leaves its shard one smaller, and a shard without any track is not written.
    Files are written atomically, the manifest last. Raises `DataError` if nothing can be packed or `folder`
    cannot be used (see `target.claim`).
    """
    config = config or PackConfig()
    there, rejects = _look(corpus)
    if not there:
        raise DataError(
            f"{corpus.folder} holds none of the {len(corpus.tracks)} tracks of {corpus.name}, such as "
            f"{corpus.tracks[0].path}: {_count_words(_count(rejects))}."
        )
    labels = {genre: label for label, genre in enumerate(corpus.classes)}
    jobs = [
        ShardJob(audio_folder=corpus.folder, folder=folder, plan=plan, labels=labels, config=config)
        for plan in plan_shards(there, tracks_per_shard=config.tracks_per_shard, seed=config.seed)
    ]
    try:
        with claim(folder, force):
            with progress.task("Packing", len(there), "tracks") as task:
                results = run_jobs(pack_shard, jobs, workers=workers or cores(), on_steps=task.advance)
            rejects += itertools.chain.from_iterable(result.rejects for result in results)
            write_rejects(folder, rejects)
            write_tracks(folder, itertools.chain.from_iterable(result.tracks for result in results))
            shard_set = _shard_set(corpus, folder, config, jobs, results, _count(rejects))
            write_manifest(shard_set)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return shard_set


def pack_shard(job: ShardJob, step: Callable[[], None]) -> ShardResult:
    """Decode, judge and write the tracks of one shard, one at a time; calls `step` after each."""
    tracks: list[PackedTrack] = []
    rejects: list[Reject] = []
    samples = _samples(job, tracks, rejects, step)
    first = next(samples, None)
    shard = None
    if first:
        shard = write_shard(
            job.folder,
            job.plan.stem,
            itertools.chain([first], samples),
            sample_rate=job.config.sample_rate,
            labelled=job.plan.labelled,
        )
    return ShardResult(shard=shard, tracks=tuple(tracks), rejects=tuple(rejects))


def _samples(
    job: ShardJob, tracks: list[PackedTrack], rejects: list[Reject], step: Callable[[], None]
) -> Iterator[Sample]:
    """Yield the tracks that are fit, and enter every one of them into `tracks` or `rejects`."""
    config = job.config
    for track in job.plan.tracks:
        try:
            pcm = decode_pcm(job.audio_folder / track.path, config.sample_rate, config.min_seconds)
        except AudioError as error:
            rejects.append(Reject(track.path, error.reason, error.detail))
        else:
            packed = PackedTrack(
                key=track.key,
                split=track.split,
                genre=track.genre,
                seconds=len(pcm) / config.sample_rate,
                shard=f"{job.plan.stem}.tar",
                path=track.path,
                sha256=hashlib.sha256(pcm_bytes(pcm)).hexdigest(),
            )
            tracks.append(packed)
            yield Sample(track, job.labels.get(track.genre, -1), pcm)
        step()


def _look(corpus: Corpus) -> tuple[list[Track], list[Reject]]:
    """Return the tracks whose files are there and not empty, and what is wrong with the others."""
    there: list[Track] = []
    rejects: list[Reject] = []
    for track in corpus.tracks:
        try:
            size = (corpus.folder / track.path).stat().st_size
        except OSError as error:
            rejects.append(Reject(track.path, "missing", error.strerror or "cannot be opened"))
            continue
        if size:
            there.append(track)
        else:
            rejects.append(Reject(track.path, "empty", "0 bytes"))
    return there, rejects


def _shard_set(
    corpus: Corpus,
    folder: Path,
    config: PackConfig,
    jobs: Iterable[ShardJob],
    results: Iterable[ShardResult],
    rejected: dict[str, int],
) -> ShardSet:
    splits: dict[str, tuple[Shard, ...]] = {}
    for job, result in zip(jobs, results, strict=True):
        if result.shard:
            splits[job.plan.split] = (*splits.get(job.plan.split, ()), result.shard)
    if not splits:
        raise DataError(
            f"nothing to pack: every file of {corpus.folder} was left out ({_count_words(rejected)}), "
            f"see {folder / REJECTED}."
        )
    return ShardSet(
        folder=folder,
        source=corpus.name,
        codec="wav",
        sample_rate=config.sample_rate,
        classes=corpus.classes,
        seed=config.seed,
        min_seconds=config.min_seconds,
        splits=splits,
        rejected=rejected,
    )


def _count(rejects: Iterable[Reject]) -> dict[str, int]:
    """Return the number of rejects by reason, in the order of `REASONS`."""
    counts = Counter(reject.reason for reject in rejects)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _count_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
