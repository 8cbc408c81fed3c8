"""CPU seconds of child processes, such as the workers of a `DataLoader` or of Dask."""

import os
import time
from pathlib import Path

from siamusic_fast.bench.timing import Clock

_TICKS = os.sysconf("SC_CLK_TCK")


class ProcessesClock(Clock):
    """The clock of this process and its living children."""

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all of them have used."""
        return time.process_time() + sum(sum(cpu_seconds(child)[:2]) for child in _children("self"))


def cpu_seconds_of_all(process: str = "self") -> float:
    """Return the CPU seconds of `process` and all below it, those that have ended and been waited for too."""
    return sum(cpu_seconds(process)) + sum(cpu_seconds_of_all(child) for child in _children(process))


def _children(process: str) -> list[str]:
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [child for tasks in lists for child in _read(tasks).split()]


def cpu_seconds(process: str) -> tuple[float, ...]:
    """Return user and system seconds of a process, and of its children that have ended."""
    fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return tuple(int(field) / _TICKS for field in fields[11:15])


def _read(path: Path) -> str:
    """Return what /proc says of a thread or a process, and nothing if it has ended meanwhile."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
