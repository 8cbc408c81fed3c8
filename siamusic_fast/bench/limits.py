"""What this machine allows, measured in the same run as what is compared with it."""

import ctypes
import mmap
import os
import statistics
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
from siamusic_fast.bench.timing import Contender, calls
from siamusic_fast.processes.pool import cores

COPYING = "limit: copying memory"
COPYING_CROPS = "limit: copying crops"
TO_GPU = "limit: copying to the GPU"
MULTIPLYING = "limit: product of matrices"
_COPIED = 64 * 2**20
"""Bytes that a thread copies at once: more than a cache holds."""
_READS = 3
_MOST_READ = 2**30
"""Bytes that are read each time."""
_MATRIX = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices."""


@dataclass(frozen=True, kw_only=True)
class DiskRead:
    """How fast files came from the disk, or from memory if they could not be dropped from it before."""

    windows: tuple[float, ...]
    """Bytes per second, each time."""
    cold: bool

    @property
    def bytes_per_second(self) -> float:
        """Median of the windows."""
        return statistics.median(self.windows)

    def measurement(self) -> Measurement:
        """Return it as a row of a report, in GB/s."""
        return Measurement(
            name="limit: reading the disk",
            unit="GB/s",
            windows=tuple(rate / 1e9 for rate in self.windows),
            setting="cold" if self.cold else "warm: the files stayed in memory",
        )


def copying() -> Contender:
    """Return copying memory with all cores, each between buffers of its own."""
    procs = cores()

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        sources = [np.ones(_COPIED, np.uint8) for _ in range(procs)]
        targets = [np.empty(_COPIED, np.uint8) for _ in range(procs)]
        with ThreadPoolExecutor(procs) as threads:
            yield calls(lambda: list(threads.map(np.copyto, targets, sources)))

    return Contender(name=COPYING, items=procs * _COPIED / 1e9, open=opened, unit="GB/s")


def copying_crops(tars: Sequence[Path], crop_bytes: int, count: int = 4096) -> Contender:
    """Return copying crops out of the mapped `tars`, from random places, with all cores.

    Each goes elsewhere, as into a batch: into a buffer that stays in the cache it would take half as long.
    """
    # Plain arrays: slicing a memmap takes longer, holding the interpreter, than copying a crop does.
    maps = [np.asarray(np.memmap(path, mode="r")) for path in tars]
    large = [tar for tar in maps if len(tar) > crop_bytes]
    rng = np.random.default_rng(0)
    tars_taken = [large[index] for index in rng.integers(len(large), size=count)]
    starts = [int(rng.integers(len(tar) - crop_bytes)) for tar in tars_taken]
    crops = [tar[start : start + crop_bytes] for tar, start in zip(tars_taken, starts, strict=True)]
    procs = cores()
    places = min(-(-_COPIED // crop_bytes), -(-count // procs))

    def copy_some(worker: int, buffers: NDArray[np.uint8]) -> None:
        for place, cut in enumerate(crops[worker::procs]):
            np.copyto(buffers[place % places], cut)

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        buffers = [np.empty((places, crop_bytes), np.uint8) for _ in range(procs)]
        with ThreadPoolExecutor(procs) as threads:
            yield calls(lambda: list(threads.map(copy_some, range(procs), buffers)))

    return Contender(name=COPYING_CROPS, items=count, open=opened, unit="crops/s")


def disk_read(paths: Sequence[Path]) -> DiskRead:
    """Read up to 1 GiB of `paths` three times, each after asking the kernel to drop them from memory."""
    rates, cold = zip(*(_read_once(paths) for _ in range(_READS)), strict=True)
    return DiskRead(windows=rates, cold=all(cold))


def _read_once(paths: Sequence[Path]) -> tuple[float, bool]:
    """Return the bytes per second, and whether all of them came from the disk."""
    cold, total, seconds = True, 0, 0.0
    for path in paths:
        if total >= _MOST_READ:
            break
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cold = cold and _resident_share(path) < 0.01
            start = time.perf_counter()
            while block := file.read(8 * 2**20):
                total += len(block)
            seconds += time.perf_counter() - start
    return total / seconds, cold


def copying_to(device: torch.device) -> Contender:
    """Return copying page-locked memory to a GPU."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        source = torch.empty(4 * _COPIED, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(source, device=device, pin_memory=False)
        yield calls(lambda: target.copy_(source, non_blocking=True))

    return Contender(name=TO_GPU, items=4 * _COPIED / 1e9, open=opened, unit="GB/s")


def multiplying(device: torch.device, dtype: torch.dtype) -> Contender:
    """Return multiplying large square matrices, in floating-point operations."""
    size = _MATRIX[device.type]

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        yield calls(lambda: torch.mm(left, right))

    return Contender(name=MULTIPLYING, items=2 * size**3 / 1e12, open=opened, unit="TFLOP/s")


def _resident_share(path: Path) -> float:
    """Return the share of a file that is in the page cache, 0 to 1."""
    size = path.stat().st_size
    if size == 0:
        return 0.0
    pages = -(-size // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    try:
        libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident)
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in resident) / pages
