"""Measures what this machine allows, in the same run as what is compared with it."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from siamusic_fast.bench.report import Measurement
from siamusic_fast.bench.timing import Workload, calls
from siamusic_fast.processes.pool import cores

COPYING_CROPS = "limit: copying crops"
COPYING_TO_GPU = "limit: copying to the GPU"
READING_DISK = "limit: reading the disk"
_COPIED_BYTES = 64 * 2**20
"""Size of the memory that a thread copies into: more than a cache holds."""
_DISK_READS = 3
_MAX_READ_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class DiskRead:
    """How fast files were read, and whether they came from the disk."""

    measurement: Measurement
    """The rate in GB/s."""
    cold: bool
    """Whether the files came from the disk, and not from the memory that the kernel keeps them in."""

    @property
    def bytes_per_second(self) -> float:
        """Median rate."""
        return 1e9 * self.measurement.median


def copying_crops(tars: Sequence[Path], crop_bytes: int, count: int = 4096) -> Workload:
    """Return copying crops from random places of the mapped `tars` with all cores.

    Each crop goes to another place, as into a batch: one buffer would stay in the cache, which takes half the
    time.
    """
    # Plain arrays: slicing a memmap takes longer than copying a crop does, and holds the interpreter.
    maps = [np.asarray(np.memmap(path, mode="r")) for path in tars]
    large = [tar for tar in maps if len(tar) > crop_bytes]
    rng = np.random.default_rng(0)
    chosen = [large[index] for index in rng.integers(len(large), size=count)]
    starts = [int(rng.integers(len(tar) - crop_bytes)) for tar in chosen]
    crops = [tar[start : start + crop_bytes] for tar, start in zip(chosen, starts, strict=True)]
    threads = cores()
    places = min(-(-_COPIED_BYTES // crop_bytes), -(-count // threads))

    def copy_share(thread: int, buffers: NDArray[np.uint8]) -> None:
        for place, crop in enumerate(crops[thread::threads]):
            np.copyto(buffers[place % places], crop)

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        buffers = [np.empty((places, crop_bytes), np.uint8) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            yield calls(lambda: list(pool.map(copy_share, range(threads), buffers)))

    return Workload(name=COPYING_CROPS, items=count, open=opened, unit="crops/s")


def copying_to_gpu(device: torch.device) -> Workload:
    """Return copying page-locked memory to a GPU."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        source = torch.empty(4 * _COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(source, device=device, pin_memory=False)
        yield calls(lambda: target.copy_(source, non_blocking=True))

    return Workload(name=COPYING_TO_GPU, items=4 * _COPIED_BYTES / 1e9, open=opened, unit="GB/s")


def read_disk(paths: Sequence[Path]) -> DiskRead:
    """Read up to 1 GiB of `paths` three times, each time after asking the kernel to drop it from memory."""
    rates, cold = zip(*(_read_once(paths) for _ in range(_DISK_READS)), strict=True)
    setting = "cold" if all(cold) else "warm: the files stayed in memory"
    found = Measurement(name=READING_DISK, unit="GB/s", windows=rates, setting=setting)
    return DiskRead(measurement=found, cold=all(cold))


def _read_once(paths: Sequence[Path]) -> tuple[float, bool]:
    """Return the GB/s, and whether all of them came from the disk."""
    cold, total, seconds = True, 0, 0.0
    for path in paths:
        if total >= _MAX_READ_BYTES:
            break
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cold = cold and not _is_in_memory(file.fileno())
            start = time.perf_counter()
            while block := file.read(8 * 2**20):
                total += len(block)
            seconds += time.perf_counter() - start
    return total / seconds / 1e9, cold


def _is_in_memory(file: int) -> bool:
    """Return whether the first byte of a file can be read without waiting for a disk."""
    try:
        return os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:  # some file systems cannot tell
        return True
