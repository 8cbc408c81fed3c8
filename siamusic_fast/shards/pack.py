"""A corpus in, a shard set out: every file is judged, and packed or listed with a reason."""

import dataclasses
import functools
import math
import secrets
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.processes.pool import (
    Count,
    Counts,
    WorkerDiedError,
    cores,
    run_in_executor,
    run_in_kept_process,
    run_in_processes,
)
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.manifest import (
    MANIFEST,
    REJECTED,
    Shard,
    ShardSet,
    find_shards,
    read_manifest,
    write_manifest,
)
from siamusic_fast.shards.pack_shard import COUNTED, ShardToPack, decode_alone, pack_shard
from siamusic_fast.shards.plan import plan_shards
from siamusic_fast.shards.resuming import (
    CRASHED,
    add_crashed_file,
    check_free,
    crashed_files,
    exclusive,
    fingerprint,
    finished_result,
    packing_digest,
    read_result,
    software,
    unfinished,
)
from siamusic_fast.shards.sharing import SharedForPacking, permit, wait_for_result
from siamusic_fast.shards.tables import PackedTrack, write_rejects, write_tracks
from siamusic_fast.shards.upload import check_remote_free, exclusive_remote, upload_state, work_folder
from siamusic_fast.storage.remote import StorageError, is_url


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
_PERMIT_SECONDS = 1.0
"""How often a worker of a cluster looks whether the packing goes on."""


def pack(
    corpus: Corpus,
    folder: str | Path,
    config: PackConfig = _DEFAULTS,
    *,
    procs: int | None = None,
    executor: Executor | None = None,
    cluster: Cluster | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ShardSet:
    """Pack the audio of `corpus` into a shard set in `folder`, a folder or a URL, and return the shard set.

    Every file is decoded and judged. What is fit goes into WebDataset shards of up to
    `config.tracks_per_shard` tracks, each a tar with an index, and is listed in tracks.csv. What is unfit is
    listed in rejected.csv with a reason, and its shard becomes smaller. The manifest is written last. All
    bytes depend on the audio, its metadata and `config` alone.

    A call that was stopped at any moment is resumed by the same call: shards that are finished are not packed
    again. Files are written under a temporary name and renamed, so none is ever half there. If `folder` is a
    URL, such as s3://bucket/mine, each shard is uploaded when it is written, read again to be checked, and
    removed here; what is finished is known from there, see `upload.py`.

    `corpus` comes from `open_corpus`, for example. `folder` is created if it does not exist. `config` has the
    settings that the bytes depend on. `procs` is the number of processes that decode, by default one per
    core. An `executor` runs the shards instead of these processes; its workers must see the audio and
    `folder` under the same paths. A `cluster` of `open_cluster` does so too; its workers check that first,
    and outlive files that kill a process. `force` replaces a shard set that is in `folder`, or an unfinished
    one with other settings; other files are never removed. `progress` shows how far the packing has come.

    A worker process that dies, killed for lack of memory for example, is replaced with a warning. The file
    that it was decoding is decoded once more in a process of its own, and rejected if that dies as well.

    Raises `DataError` if no file can be packed, if `folder` holds something else, is being packed by another
    process or cannot be written, if a file changes or goes away while it is packed, or if workers die time
    and again. The message says how to go on; finished shards stay.
    """
    url = folder.rstrip("/") if isinstance(folder, str) and is_url(folder) else ""
    if url and cluster:
        raise ConfigError(
            f"workers of a cluster pack into a folder that they share, not to {url}: give a folder (on the "
            f"command line --out), or pack on one machine (without --scheduler)."
        )
    if url:
        check_remote_free(url, force)
        folder = work_folder(url)
    else:
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
    packing = packing_digest(inputs)
    sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
    labels = {genre: label for label, genre in enumerate(corpus.classes)}
    try:
        with exclusive_remote(url, inputs, force) if url else exclusive(folder, inputs, force):
            crashed = crashed_files(folder)
            shards = [
                ShardToPack(
                    audio=corpus.folder,
                    in_tables=corpus.in_tables,
                    folder=folder,
                    url=url,
                    packing=packing,
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
                _pack_shards(shards, found, procs or cores(), executor, cluster, progress)
                _write_tables(corpus, folder, config, shards, found)
    except (OSError, StorageError) as error:
        state = unfinished(folder)
        rest = f" from the {state.finished} shards that are finished" if state and state.finished else ""
        going_on = f"When that is mended, the same command goes on{rest}."
        failure = (
            error if isinstance(error, StorageError) else f"{folder} cannot be written: {_words(error)}."
        )
        raise DataError(f"packing stopped: {failure} {going_on}") from None
    return find_shards(url) if url else read_manifest(folder)


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _pack_shards(
    shards: Sequence[ShardToPack],
    found: ScanResult,
    procs: int,
    executor: Executor | None,
    cluster: Cluster | None,
    progress: Progress,
) -> None:
    """Pack those of `shards` that are not finished."""
    with progress.task("Packing", len(found.tracks), "tracks") as task:
        meter = _Meter(task, Counter(reject.reason for reject in found.rejects))
        todo = meter.leave_out_finished(shards)
        if not todo:
            return
        if cluster:
            _pack_on_cluster(todo, cluster, meter)
        elif executor:
            run_in_executor(pack_shard, todo, executor, counters=len(COUNTED), on_counts=meter.on_counts)
        else:
            run = functools.partial(run_in_processes, procs=procs)
            for death in _pack_in_processes(todo, run, meter.on_counts, meter.leave_out_finished):
                death.note(todo[0].folder, todo[0].url)


def _pack_in_processes(
    shards: Sequence[ShardToPack],
    run: Callable[..., None],
    on_counts: Count,
    leave_out_finished: Callable[[list[ShardToPack]], list[ShardToPack]],
) -> Iterator["_Death"]:
    """Pack `shards` in processes of this machine, and yield those that died and have been replaced.

    `run` is `run_in_processes` or `run_in_kept_process`.
    """
    todo = list(shards)
    by_chance = 0
    while todo:
        try:
            run(pack_shard, todo, counters=len(COUNTED), on_counts=on_counts)
            return
        except WorkerDiedError as error:
            death = _examine(error, todo)
            by_chance += not death.deadly
            if by_chance > _MOST_BY_CHANCE:
                raise
        yield death
        if death.deadly:
            todo = [dataclasses.replace(shard, crashed=shard.crashed | {death.deadly}) for shard in todo]
        todo = leave_out_finished(todo)


def _pack_on_cluster(shards: Sequence[ShardToPack], cluster: Cluster, meter: "_Meter") -> None:
    """Pack `shards` on the workers of `cluster`, each in a process beside the worker."""
    first = shards[0]
    shared = SharedForPacking(
        software=software(),
        audio=first.audio if isinstance(first.audio, str) else first.audio.absolute(),
        in_tables=first.in_tables,
        path=first.plan.tracks[0].path,
        size=first.sizes[0],
        folder=first.folder.absolute(),
        token=secrets.token_hex(8),
    )
    jobs = [
        dataclasses.replace(shard, audio=shared.audio, folder=shared.folder, permit=shared.permit)
        for shard in shards
    ]

    def on_result(place: int, deaths: list[_Death]) -> None:
        for death in deaths:
            death.note(first.folder)

    with permit(shared):
        cluster.run(
            functools.partial(_pack_apart, shared),
            jobs,
            names=[f"shard-{shard.plan.stem}" for shard in shards],
            shared=shared,
            counters=len(COUNTED),
            on_counts=meter.on_counts,
            on_result=on_result,
        )
    for shard in shards:
        wait_for_result(shard.folder, shard.plan.stem)


def _pack_apart(shared: SharedForPacking, shard: ShardToPack, report: Count) -> list["_Death"]:
    """Pack one shard on a worker of a cluster, in a process that may die of a file without the worker.

    A worker that lost its connection may go on while another does its shard again, so each attempt writes
    under a name of its own. It stops when its permit is gone.
    """
    checked_at = time.monotonic()

    def on_counts(counts: Counts) -> None:
        nonlocal checked_at
        if time.monotonic() - checked_at > _PERMIT_SECONDS:
            checked_at = time.monotonic()
            if not shared.permit.exists():
                raise DataError(f"{shared.folder} is not being packed any more: this worker stops.")
        report(counts)

    attempt = dataclasses.replace(shard, writer=secrets.token_hex(4))
    return list(_pack_in_processes([attempt], run_in_kept_process, on_counts, lambda left: left))


class _Meter:
    """Shows how far the packing has come: in shards that are finished, and in those that workers are at."""

    def __init__(self, task: Task, rejected: Counter[str]) -> None:
        self._task, self._rejected = task, rejected
        self._finished = self._shown = 0

    def leave_out_finished(self, shards: Iterable[ShardToPack]) -> list[ShardToPack]:
        """Count those of `shards` that are finished, once each, and return the others."""
        todo = []
        for shard in shards:
            if result := finished_result(
                shard.folder, shard.plan.stem, shard.packing, uploaded=bool(shard.url)
            ):
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


@dataclass(frozen=True)
class _Death:
    """A worker process died while it packed a shard."""

    words: str = ""
    """What the user is told; empty if it is not known which file it was at."""
    deadly: str | None = None
    """Path of that file, if a process that decodes it alone dies as well."""

    def note(self, folder: Path, url: str = "") -> None:
        """Warn of it, and let later runs that pack into `folder`, or from there to `url`, know the file."""
        if self.words:
            warnings.warn(self.words, stacklevel=2)
        if self.deadly:
            add_crashed_file(folder, self.deadly)
            if url:
                upload_state(folder, url, CRASHED)


def _examine(error: WorkerDiedError, shards: Sequence[ShardToPack]) -> _Death:
    """Find out whether a worker died because of the file that it was at.

    Raises `WorkerDiedError` if a process dies before it decodes anything.
    """
    if error.job is None or error.step >= len(shards[error.job].plan.tracks):
        return _Death()
    alone = shards[error.job].only(error.step)
    path = alone.plan.tracks[0].path
    died = f"a worker process died ({error.how}) while it decoded {path}"
    try:
        run_in_processes(decode_alone, [alone], procs=1, counters=len(COUNTED), on_counts=lambda counts: None)
    except WorkerDiedError as again:
        if not again.step:
            raise
        return _Death(f"{died}, and so did one that decoded nothing else: that file is left out", path)
    return _Death(f"{died}, which can be decoded: it is tried again")


def _write_tables(
    corpus: Corpus, folder: Path, config: PackConfig, packed: Iterable[ShardToPack], found: ScanResult
) -> None:
    """Write both tables and the manifest; the results of the shards are read one at a time."""
    rejects = list(found.rejects)
    splits: dict[str, list[Shard]] = defaultdict(list)

    def tracks() -> Iterator[PackedTrack]:
        for shard in packed:
            result = read_result(folder, shard.plan.stem)
            if result.packing != shard.packing:
                raise DataError(
                    f"a worker of another packing has written {shard.plan.stem} into {folder}: the same "
                    f"command packs it again."
                )
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
