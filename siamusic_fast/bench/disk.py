"""Measures how fast the disk gives files."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from siamusic_fast.bench.report import Measurement

READING_DISK = "limit: reading the disk"
COLD = "cold"
"""Setting of a measurement of files that came from the disk, not from the memory that the kernel keeps them
in.
"""
_DISK_READS = 3
_MAX_READ_BYTES = 2**30


def read_disk(paths: Sequence[Path]) -> Measurement:
    """Read up to 1 GiB of `paths` three times, each time after asking the kernel to drop it from memory."""
    rates, cold = zip(*(_read_once(paths) for _ in range(_DISK_READS)), strict=True)
    setting = COLD if all(cold) else "warm: the files stayed in memory"
    return Measurement(name=READING_DISK, unit="GB/s", windows=rates, setting=setting)


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
