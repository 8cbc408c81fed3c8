"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import REASONS, DecodeConfig
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.scan import ScanResult, explain_duplicates, scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.config import MAX_SEED
from siamusic_fast.config.fields import Between, OneOf, Section
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import Counts, WorkerDiedError, cores, run_in_executor, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import CODECS, Encoding
from siamusic_fast.shards.manifest import MANIFEST, REJECTED, Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.pack_shard import COUNTED, ShardToPack, pack_shard
from siamusic_fast.shards.plan import plan_shards
from siamusic_fast.shards.resuming import (
    add_crashed_file,
    check_free,
    crashed_files,
    exclusive,
    fingerprint,
    finished_result,
    read_result,
    unfinished,
)
from siamusic_fast.shards.tables import PackedTrack, write_rejects, write_tracks


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The settings that the bytes of a shard set depend on."""

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
        _ = self.encoding, self.demands  # which check themselves
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
    def demands(self) -> DecodeConfig:
        """What a file has to be like to be packed."""
        return DecodeConfig(
            sample_rate=self.sample_rate,
            min_seconds=self.min_seconds,
            max_hours=self.max_hours,
            max_damage=self.max_damage,
        )

    @property
    def encoding(self) -> Encoding:
        """How the audio is stored."""
        return Encoding(sample_rate=self.sample_rate, codec=self.codec, quality=self.quality)


_DEFAULTS = PackConfig()


@dataclass(frozen=True, kw_only=True)
class PackStatus:
    """How far a packing has come."""

    total: int
    """Number of files to decode."""
    files: int
    """Number of them that are decoded, by this run or an earlier one."""
    files_now: int
    """Number of files that this run has decoded."""
    bytes_now: int
    """Bytes of compressed audio that this run has read."""
    seconds: float
    """Seconds that this run has been decoding for."""
    rejected: dict[str, int]
    """Number of files that are left out so far, by reason code."""

    @property
    def files_per_second(self) -> float:
        """Files that this run decodes per second."""
        return self.files_now / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Compressed audio that this run reads, in units of 1,000,000 bytes per second."""
        return self.bytes_now / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the rate so far; None if nothing has been decoded yet."""
        return (self.total - self.files) / self.files_per_second if self.files_now else None

    def words(self) -> str:
        """Return the rates and the rejects as one line."""
        rates = f"{self.files_per_second:.1f} tracks/s, {self.megabytes_per_second:.1f} MB/s"
        return f"{rates}, left out: {_in_words(self.rejected)}" if self.rejected else rates


def pack(
    corpus: Corpus,
    folder: str | Path,
    config: PackConfig = _DEFAULTS,
    *,
    procs: int | None = None,
    executor: Executor | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    watch: Callable[[PackStatus], None] = lambda status: None,
) -> ShardSet:
    """Pack the audio of `corpus` into a shard set in `folder`, and return the shard set.

    Every file is decoded and judged. What is fit goes into WebDataset shards of up to
    `config.tracks_per_shard` tracks, each a tar with an index, and is listed in tracks.csv. What is unfit is
    listed in rejected.csv with a reason, and its shard becomes smaller. The manifest is written last. All
    bytes depend on the audio, its metadata and `config` alone.

    A call that was stopped at any moment is resumed by the same call: shards that are finished are not packed
    again. Files are written under a temporary name and renamed, so none is ever half there.

    `corpus` comes from `open_corpus`, for example. `folder` is created if it does not exist. `config` has the
    settings that the bytes depend on. `procs` is the number of processes that decode, by default one per
    core. An `executor` runs the shards instead of these processes; its workers must see the audio and
    `folder` under the same paths. `force` replaces a shard set that is in `folder`, or an unfinished one with
    other settings; other files are never removed. `progress` shows the progress, and `watch` is called now
    and then with the `PackStatus`.

    Raises `DataError` if no file can be packed, if `folder` holds something else, is being packed by another
    process or cannot be written, if a file changes or goes away while it is packed, or if a worker process
    dies. The message says how to go on; finished shards stay.
    """
    folder = Path(folder)
    check_free(folder, force)
    found = scan(corpus, open_store(corpus.folder), progress)
    if not found.tracks:
        raise DataError(
            f"{corpus.folder} holds none of the {len(corpus.tracks)} tracks of {corpus.name}, such as "
            f"{corpus.tracks[0].path}: {_in_words(_count_reasons(found.rejects))}."
        )
    plans = plan_shards(found.tracks, tracks_per_shard=config.tracks_per_shard, seed=config.seed)
    inputs = fingerprint(corpus, found, len(plans), dataclasses.asdict(config))
    sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
    labels = {genre: label for label, genre in enumerate(corpus.classes)}
    try:
        with exclusive(folder, inputs, force):
            crashed = crashed_files(folder)
            shards = [
                ShardToPack(
                    audio=corpus.folder,
                    folder=folder,
                    plan=plan,
                    sizes=tuple(sizes[track.path] for track in plan.tracks),
                    crashed=crashed,
                    labels=labels,
                    demands=config.demands,
                    encoding=config.encoding,
                    max_seconds=config.max_seconds,
                )
                for plan in plans
            ]
            # A kill after the manifest was written leaves it beside the lock.
            if not (folder / MANIFEST).exists():
                _pack_shards(shards, found, procs or cores(), executor, progress, watch)
                _write_tables(corpus, folder, config, shards, found)
    except OSError as error:
        state = unfinished(folder)
        rest = f" from the {state.finished} shards that are finished" if state and state.finished else ""
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}. When that is mended, the same command "
            f"goes on{rest}."
        ) from None
    return read_manifest(folder)


def _pack_shards(
    shards: Iterable[ShardToPack],
    found: ScanResult,
    procs: int,
    executor: Executor | None,
    progress: Progress,
    watch: Callable[[PackStatus], None],
) -> None:
    """Pack those of `shards` that are not finished."""
    todo = []
    files_before = reported = 0
    rejected = Counter(reject.reason for reject in found.rejects)
    for shard in shards:
        if result := finished_result(shard.folder, shard.plan.stem):
            files_before += len(shard.plan.tracks)
            rejected.update(reject.reason for reject in result.rejects)
        else:
            todo.append(shard)
    start = time.monotonic()
    with progress.task("Packing", len(found.tracks), "tracks") as task:

        def on_counts(counts: Counts) -> None:
            nonlocal reported
            now = dict(zip(COUNTED, counts, strict=True))
            status = PackStatus(
                total=len(found.tracks),
                files=files_before + now["files"],
                files_now=now["files"],
                bytes_now=now["bytes"],
                seconds=time.monotonic() - start,
                rejected={r: count for r in REASONS if (count := rejected[r] + now[r])},
            )
            watch(status)
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
                raise _naming_file(error, todo) from None


def _naming_file(error: WorkerDiedError, shards: list[ShardToPack]) -> DataError:
    """Return the error that names the file at which a worker died, and let the next run skip that file."""
    if error.job is None or error.step >= len(shards[error.job].plan.tracks):
        return error
    shard = shards[error.job]
    path = shard.plan.tracks[error.step].path
    add_crashed_file(shard.folder, path)
    return DataError(
        f"a worker process died ({error.how}) while it decoded {path}: the same command goes on without that "
        f"file; --force starts over and tries it again."
    )


def _write_tables(
    corpus: Corpus, folder: Path, config: PackConfig, packed: Iterable[ShardToPack], found: ScanResult
) -> None:
    """Write both tables and the manifest; the results of the shards are read one at a time."""
    rejects = list(found.rejects)
    splits: dict[str, list[Shard]] = defaultdict(list)

    def tracks() -> Iterator[PackedTrack]:
        for shard in packed:
            result = read_result(folder, shard.plan.stem)
            rejects.extend(result.rejects)
            if result.shard:
                splits[shard.plan.split].append(result.shard)
            yield from result.tracks

    write_tracks(folder, tracks())
    write_rejects(folder, explain_duplicates(rejects, found))
    rejected = _count_reasons(rejects)
    if not splits:
        raise DataError(
            f"nothing to pack: every file of {corpus.folder} was left out ({_in_words(rejected)}), "
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


def _count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Return the number of rejects by reason, in the order of `REASONS`."""
    counts = Counter(reject.reason for reject in rejects)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
