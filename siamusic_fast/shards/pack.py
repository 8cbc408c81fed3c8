"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import REASONS, DecodeConfig
from siamusic_fast.audio.scan import ScanResult, scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.config import MAX_SEED
from siamusic_fast.config.fields import Between, Section
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import Counts, WorkerDiedError, cores, run_in_executor, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import Encoding
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
class PackConfig(DecodeConfig, Encoding):
    """The settings that the bytes of a shard set depend on."""

    max_seconds: Annotated[float | None, Section("Packing")] = None
    """Length of the segments that longer tracks are cut into, in seconds; silent segments are dropped. None:
    tracks are kept whole."""
    tracks_per_shard: Annotated[int, Between(1)] = 512
    """Largest number of tracks in a shard; the segments of a track count as one."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of everything that is random."""

    def __post_init__(self) -> None:
        DecodeConfig.__post_init__(self)
        Encoding.__post_init__(self)
        if self.max_seconds is not None and not (
            math.isfinite(self.max_seconds)
            and self.max_seconds >= self.min_seconds
            and self.max_seconds * self.sample_rate >= 1
        ):
            raise ConfigError(
                f"max_seconds = {self.max_seconds:g} must be above 0 and no less than "
                f"min_seconds = {self.min_seconds:g}."
            )


_DEFAULTS = PackConfig()


def pack(
    corpus: Corpus,
    folder: str | Path,
    config: PackConfig = _DEFAULTS,
    *,
    procs: int | None = None,
    executor: Executor | None = None,
    force: bool = False,
    progress: Progress = SILENT,
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
    other settings; other files are never removed. `progress` shows how far the packing has come.

    Raises `DataError` if no file can be packed, if `folder` holds something else, is being packed by another
    process or cannot be written, if a file changes or goes away while it is packed, or if a worker process
    dies. The message says how to go on; finished shards stay.
    """
    folder = Path(folder)
    check_free(folder, force)
    store = open_store(corpus.folder, corpus.in_tables)
    found = scan(corpus, store, progress)
    if not found.tracks:
        raise DataError(
            f"{corpus.folder} holds none of the {len(corpus.tracks)} tracks of {corpus.name}, such as "
            f"{corpus.tracks[0].path}: {_in_words(Counter(reject.reason for reject in found.rejects))}."
        )
    plans = plan_shards(
        found.tracks,
        tracks_per_shard=config.tracks_per_shard,
        seed=config.seed,
        block=store.block if corpus.in_tables else None,
    )
    inputs = fingerprint(corpus, found, len(plans), dataclasses.asdict(config))
    sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
    labels = {genre: label for label, genre in enumerate(corpus.classes)}
    try:
        with exclusive(folder, inputs, force):
            crashed = crashed_files(folder)
            shards = [
                ShardToPack(
                    audio=corpus.folder,
                    in_tables=corpus.in_tables,
                    folder=folder,
                    plan=plan,
                    sizes=tuple(sizes[track.path] for track in plan.tracks),
                    crashed=crashed,
                    labels=labels,
                    demands=config,
                    encoding=config,
                    max_seconds=config.max_seconds,
                )
                for plan in plans
            ]
            # A kill after the manifest was written leaves it beside the lock.
            if not (folder / MANIFEST).exists():
                _pack_shards(shards, found, procs or cores(), executor, progress)
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
) -> None:
    """Pack those of `shards` that are not finished."""
    todo = []
    files_before = reported = 0
    rejected_before = Counter(reject.reason for reject in found.rejects)
    for shard in shards:
        if result := finished_result(shard.folder, shard.plan.stem):
            files_before += len(shard.plan.tracks)
            rejected_before.update(reject.reason for reject in result.rejects)
        else:
            todo.append(shard)
    start = time.monotonic()
    with progress.task("Packing", len(found.tracks), "tracks") as task:

        def on_counts(counts: Counts) -> None:
            nonlocal reported
            files, size, *rejected = counts
            if files_before + files > reported:
                seconds = max(time.monotonic() - start, 1e-3)
                left_out = rejected_before + Counter(dict(zip(REASONS, rejected, strict=True)))
                note = packing_note(files, size, seconds, left_out)
                task.advance(files_before + files - reported, note=note)
                reported = files_before + files

        on_counts((0,) * len(COUNTED))
        if executor:
            run_in_executor(pack_shard, todo, executor, counters=len(COUNTED), on_counts=on_counts)
        elif todo:
            try:
                run_in_processes(pack_shard, todo, procs=procs, counters=len(COUNTED), on_counts=on_counts)
            except WorkerDiedError as error:
                raise _naming_file(error, todo) from None


def packing_note(files: int, size: int, seconds: float, left_out: Counter[str]) -> str:
    """Return the rates of `files` of `size` bytes that were decoded in `seconds`, and what was left out."""
    rates = f"{files / seconds:.1f} tracks/s, {size / 1e6 / seconds:.1f} MB/s"
    return f"{rates}, left out: {_in_words(left_out)}" if left_out else rates


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
    write_rejects(folder, rejects)
    rejected = Counter(reject.reason for reject in rejects)
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
        tags=corpus.tags,
        seed=config.seed,
        min_seconds=config.min_seconds,
        splits={split: tuple(shards) for split, shards in splits.items()},
        rejected={reason: rejected[reason] for reason in REASONS if rejected[reason]},
        max_seconds=config.max_seconds,
        quality=config.quality if config.codec == "ogg" else None,
    )
    write_manifest(shard_set)


def _in_words(rejected: Counter[str]) -> str:
    """Return the number of rejects by reason, in the order of `REASONS`."""
    return ", ".join(f"{rejected[reason]} {reason}" for reason in REASONS if rejected[reason])
