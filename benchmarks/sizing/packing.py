"""Packs a corpus without its audio: everything that one process does, whoever decodes the tracks."""

import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np

from benchmarks.process import mebibytes
from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.store import FileStatus, Store
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.manifest import MANIFEST, TRACKS, Shard
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.pack_shard import ShardToPack
from siamusic_fast.shards.resuming import ShardResult, write_result
from siamusic_fast.shards.write_shard import Segment, table_row, write_shard

_SECONDS = 0.1
"""Length of the tracks in the tar that stands for all."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What it took from a corpus in memory to the first shard that is handed to a worker."""

    seconds: float
    cpu: float
    """Seconds of the processor. On a machine that others use, less than `seconds`."""
    memory: float
    """Peak of the process in MiB, with the corpus."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing takes in one process beside the audio."""

    tables: float
    """Seconds from the end of the last shard until the shard set is there: tables and manifest."""
    tables_cpu: float
    """Seconds of the processor for that."""
    table_bytes: int
    """Size of tracks.csv."""
    manifest_bytes: int
    shards: int


def plan(tracks: int) -> Planned:
    """Plan the packing of so many tracks, and pack none."""
    corpus = imagined_corpus(tracks)
    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch, suppress(_FirstShardError):
        _pack(corpus, Path(scratch) / "shards", _Refusing())
    return Planned(
        seconds=time.perf_counter() - started,
        cpu=time.process_time() - cpu,
        memory=mebibytes("VmHWM"),
    )


def pack_without_audio(tracks: int) -> Packed:
    """Pack so many tracks; each shard is the same tar under another name, and its rows are made up."""
    corpus = imagined_corpus(tracks)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        worker = _Linking(Path(scratch))
        made = _pack(corpus, folder, worker)
        seconds, cpu = time.perf_counter(), time.process_time()
        return Packed(
            tables=seconds - worker.ended,
            tables_cpu=cpu - worker.ended_cpu,
            table_bytes=(folder / TRACKS).stat().st_size,
            manifest_bytes=(folder / MANIFEST).stat().st_size,
            shards=len(made.shards(list(made.splits))),
        )


def imagined_corpus(tracks: int) -> Corpus:
    """Return a corpus as `load_folder` makes it of labels: files in folders, classes and artists."""
    genres, artists = [f"genre {n}" for n in range(17)], [f"artist {n}" for n in range(-(-tracks // 12))]
    return Corpus(
        name="imagined",
        folder=Path("imagined"),
        tracks=[
            Track(
                "", f"{n // 1000:06d}/{n:09d}.mp3", "training", genres[n // 12 % 17], group=artists[n // 12]
            )
            for n in range(tracks)
        ],
    )


def _pack(corpus: Corpus, folder: Path, executor: Executor) -> Any:
    store = _ImaginedStore(corpus.folder)
    with mock.patch("siamusic_fast.shards.pack.open_store", return_value=store):
        return pack(corpus, folder, executor=executor)


class _ImaginedStore(Store):
    """Has every file that it is asked for. No two have the same size, so that none is read."""

    def status(self, path: str) -> FileStatus:
        number = int(path[-13:-4])
        return FileStatus(100_000 + number, 1_700_000_000_000_000_000 + number)

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO()

    def paths(self) -> Iterator[str]:
        return iter(())


class _FirstShardError(Exception):
    """The plan is made."""


class _Refusing(Executor):
    """Ends the packing with the first shard."""

    def submit(self, *_: Any, **__: Any) -> Any:
        raise _FirstShardError


class _Linking(Executor):
    """Takes a shard for packed by linking a tar, and notes when the last one was."""

    def __init__(self, scratch: Path) -> None:
        rate = PackConfig.sample_rate
        self._encoding = Encoding(sample_rate=rate)
        pcm = np.zeros(round(_SECONDS * rate), np.int16)
        content = self._encoding.encode(pcm)
        track = Track("", "0.mp3", "training", "genre 0")
        self._segment = Segment(track.key, track, 0, pcm, content)
        count = PackConfig.tracks_per_shard
        segments = (dataclasses.replace(self._segment, key=f"{n:06d}") for n in range(count))
        self._scratch = scratch
        self._shard = write_shard(scratch, "shard", segments, encoding=self._encoding, labelled=True)
        self.ended = self.ended_cpu = 0.0

    def submit(self, run: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        _, job, counters = arguments
        write_result(
            job.folder,
            job.plan.stem,
            ShardResult(packing=job.packing, shard=self._link(job), tracks=self._rows(job), rejects=()),
        )
        done: Future[Any] = Future()
        done.set_result([len(job.plan.tracks), *[0] * (counters - 1)])
        self.ended, self.ended_cpu = time.perf_counter(), time.process_time()
        return done

    def _link(self, job: ShardToPack) -> Shard:
        shard = dataclasses.replace(
            self._shard,
            file=f"{job.plan.stem}.tar",
            index=f"{job.plan.stem}.idx",
            tracks=len(job.plan.tracks),
            labelled=job.plan.labelled,
        )
        os.link(self._scratch / self._shard.file, job.folder / shard.file)
        os.link(self._scratch / self._shard.index, job.folder / shard.index)
        return shard

    def _rows(self, job: ShardToPack) -> Any:
        rate = self._encoding.sample_rate
        row = table_row(self._segment, job.plan.stem, rate, clipped=0, seconds_promised=29.98)
        return tuple(
            dataclasses.replace(
                row,
                key=track.key,
                track_id=track.key,
                split=track.split,
                genre=track.genre,
                group=track.group,
                path=track.path,
                seconds=30.0,
                samples=30 * rate,
            )
            for track in job.plan.tracks
        )
