"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import REASONS, DecodeConfig
from siamusic_fast.audio.scan import ScanResult, scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.config import MAX_SEED
from siamusic_fast.config.fields import Between, Section
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import Counts, WorkerDiedError, cores, run_in_executor, run_in_processes
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.manifest import MANIFEST, REJECTED, Shard, ShardSet, read_manifest, write_manifest
from siamusic_fast.shards.pack_shard import COUNTED, ShardToPack, decode_alone, pack_shard
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
_MOST_BY_CHANCE = 3
"""Most workers that may die in one call for other reasons than their file; mostly the memory is too small."""


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

    A worker process that dies, killed for lack of memory for example, is replaced with a warning. The file
    that it was decoding is decoded once more in a process of its own, and rejected if that dies as well.

    Raises `DataError` if no file can be packed, if `folder` holds something else, is being packed by another
    process or cannot be written, if a file changes or goes away while it is packed, or if workers die time
    and again. The message says how to go on; finished shards stay.
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
    shards: Sequence[ShardToPack],
    found: ScanResult,
    procs: int,
    executor: Executor | None,
    progress: Progress,
) -> None:
    """Pack those of `shards` that are not finished."""
    with progress.task("Packing", len(found.tracks), "tracks") as task:
        meter = _Meter(task, Counter(reject.reason for reject in found.rejects))
        todo = meter.leave_out_finished(shards)
        options: dict[str, Any] = {"counters": len(COUNTED), "on_counts": meter.on_counts}
        if executor:
            run_in_executor(pack_shard, todo, executor, **options)
            return
        by_chance = 0
        while todo:
            try:
                run_in_processes(pack_shard, todo, procs=procs, **options)
                return
            except WorkerDiedError as error:
                deadly = _deadly_file(error, todo)
                by_chance += not deadly
                if by_chance > _MOST_BY_CHANCE:
                    raise
            if deadly:
                add_crashed_file(todo[0].folder, deadly)
                todo = [dataclasses.replace(shard, crashed=shard.crashed | {deadly}) for shard in todo]
            todo = meter.leave_out_finished(todo)


class _Meter:
    """Shows how far the packing has come: in shards that are finished, and in those that workers are at."""

    def __init__(self, task: Task, rejected: Counter[str]) -> None:
        self._task, self._rejected = task, rejected
        self._finished = self._shown = 0

    def leave_out_finished(self, shards: Iterable[ShardToPack]) -> list[ShardToPack]:
        """Count those of `shards` that are finished, once each, and return the others."""
        todo = []
        for shard in shards:
            if result := finished_result(shard.folder, shard.plan.stem):
                self._finished += len(shard.plan.tracks)
                self._rejected.update(reject.reason for reject in result.rejects)
            else:
                todo.append(shard)
        self._start = time.monotonic()
        self.on_counts((0,) * len(COUNTED))
        return todo

    def on_counts(self, counts: Counts) -> None:
        """Show what workers have done since the last call of `leave_out_finished`."""
        files, size, *rejected = counts
        if self._finished + files > self._shown:
            seconds = max(time.monotonic() - self._start, 1e-3)
            left_out = self._rejected + Counter(dict(zip(REASONS, rejected, strict=True)))
            note = packing_note(files, size, seconds, left_out)
            self._task.advance(self._finished + files - self._shown, note=note)
            self._shown = self._finished + files


def packing_note(files: int, size: int, seconds: float, left_out: Counter[str]) -> str:
    """Return the rates of `files` of `size` bytes that were decoded in `seconds`, and what was left out."""
    rates = f"{files / seconds:.1f} tracks/s, {size / 1e6 / seconds:.1f} MB/s"
    return f"{rates}, left out: {_in_words(left_out)}" if left_out else rates


def _deadly_file(error: WorkerDiedError, shards: Sequence[ShardToPack]) -> str | None:
    """Return the file at which a worker died, if one that decodes it alone dies as well; else None.

    Warns of what was found. Raises `WorkerDiedError` if a worker dies before it decodes anything.
    """
    if error.job is None or error.step >= len(shards[error.job].plan.tracks):
        return None
    alone = shards[error.job].only(error.step)
    path = alone.plan.tracks[0].path
    died = f"a worker process died ({error.how}) while it decoded {path}"
    try:
        run_in_processes(decode_alone, [alone], procs=1, counters=len(COUNTED), on_counts=lambda counts: None)
    except WorkerDiedError as again:
        if not again.step:
            raise
        warnings.warn(
            f"{died}, and so did one that decoded nothing else: that file is left out", stacklevel=2
        )
        return path
    warnings.warn(f"{died}, which can be decoded: it is tried again", stacklevel=2)
    return None


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
