"""Opening a shard set of very many tracks, and looking over very many files of audio."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.opening import open_loader, repeated_shards
from benchmarks.process import forget_peak, mebibytes
from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.scan import scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.bench.timing import take
from siamusic_fast.files import file_sha256
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_tracks

_SMALL = 512


@dataclass(frozen=True, kw_only=True)
class OpenedSet:
    """What a loader over a shard set took, in a process that had opened a small set before."""

    seconds: float
    """From the manifest until it can be asked for its first batch."""
    cpu: float
    """Seconds of the processor. On a machine that others use, less than `seconds`."""
    memory: float
    """MiB that were added at the peak."""
    first_batch: float
    """Seconds from the manifest to the first batch."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the shards of a corpus take."""

    clips: int
    hours: float
    per_1000_hours: float
    """GB of tars that 1,000 hours of such audio would take."""


def open_set(folder: str, small: str) -> OpenedSet:
    """Open the set in the folder `small`, and then the one in `folder`."""
    with open_loader(Path(small)) as loader:
        take(iter(loader), 1)
    forget_peak()
    before = mebibytes("VmHWM")
    started, cpu = time.perf_counter(), time.process_time()
    with open_loader(Path(folder)) as loader:
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        memory = mebibytes("VmHWM") - before
        take(iter(loader), 1)
        first_batch = time.perf_counter() - started
    return OpenedSet(seconds=seconds, cpu=cpu_seconds, memory=memory, first_batch=first_batch)


def make_sets(folder: Path, tracks: int, row_bytes: int) -> tuple[Path, Path]:
    """Make a set of `tracks` tracks and a small one in `folder`, and return their folders."""
    many, few = folder / "many", folder / "few"
    repeated_shards(many, tracks, row_bytes=row_bytes)
    repeated_shards(few, _SMALL)
    return many, few


def seconds_per_file(folder: Path, files: int, *, same_size: bool) -> float:
    """Make so many files in the new `folder`, scan them, and return the seconds of the processor for each.

    If they have the `same_size`, 4 KiB of each are read, too. They have just been written, and no disk is
    waited for.
    """
    folder.mkdir()
    for number in range(files):
        below = folder / str(number // 1000)
        below.mkdir(exist_ok=True)
        content = number.to_bytes(4, "big") * 1_024
        (below / f"{number}.mp3").write_bytes(content if same_size else content + bytes(number))
    corpus = load_folder(folder)
    return _timed(lambda: scan(corpus, open_store(folder))) / files


def hash_rate(folder: Path, megabytes: int = 64) -> float:
    """Return the MB that a second of the processor computes the SHA-256 of; the file is in memory."""
    path = folder / "hashed"
    path.write_bytes(bytes(megabytes * 10**6))
    return megabytes / _timed(lambda: file_sha256(path))


def store(corpus: Corpus, folder: Path, codec: str) -> Stored:
    """Pack `corpus` into the new `folder`."""
    made = pack(corpus, folder, PackConfig(codec=codec))
    seconds = [track.seconds for track in read_tracks(folder)]
    gigabytes = sum(shard.bytes for shard in made.shards(list(made.splits))) / 1e9
    hours = sum(seconds) / 3600
    return Stored(clips=len(seconds), hours=hours, per_1000_hours=1000 * gigabytes / hours)


def _timed(call: Callable[[], object]) -> float:
    """Return the seconds of the processor that `call` takes; those of the clock depend on other programs."""
    started = time.process_time()
    call()
    return time.process_time() - started
