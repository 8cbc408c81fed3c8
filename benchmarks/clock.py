"""A clock that counts the CPU seconds of child processes, such as the workers of a `DataLoader`."""

import os
import time
from pathlib import Path

from siamusic_fast.bench.timing import Clock

_TICKS = os.sysconf("SC_CLK_TCK")


class ProcessesClock(Clock):
    """The clock of this process and its living children."""

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all of them have used."""
        lists = Path("/proc/self/task").glob("*/children")
        children = [child for tasks in lists for child in _read(tasks).split()]
        return time.process_time() + sum(map(_cpu_seconds_of, children))


def _cpu_seconds_of(process: str) -> float:
    fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _read(path: Path) -> str:
    """Return what /proc says of a thread or a process, and nothing if it has ended meanwhile."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
