"""Measuring in turns: A B A B, each warm, with the clock read at the edges of a window only."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from siamusic_fast.bench.report import Measurement
from siamusic_fast.errors import ConfigError
from siamusic_fast.progress import SILENT, Progress

_WARM_UP_SECONDS = 2.0
_FEWEST_WARM_UP_BATCHES = 2
_BATCHES_AHEAD = 6
"""More than any loader makes in advance: what lies ready when a window begins is used up before."""
_LONGEST_WINDOW = 3600.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that makes batches, to be measured beside others."""

    name: str
    items: int
    """In a batch."""
    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Returns what gives the batches of an epoch, again and again."""
    unit: str = "pairs/s"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure."""

    windows: int = 5
    """How often each contender is measured."""
    seconds: float = 3.0
    """About how long each time."""

    def __post_init__(self) -> None:
        if self.windows < 1 or not 0 < self.seconds <= _LONGEST_WINDOW:
            raise ConfigError(
                f"windows = {self.windows} must be at least 1 and seconds = {self.seconds:g} above 0, "
                f"at most {_LONGEST_WINDOW:g}."
            )


def in_turns(
    contenders: Sequence[Contender],
    timing: Timing,
    device: torch.device,
    *,
    title: str = "Measuring",
    progress: Progress = SILENT,
) -> list[Measurement]:
    """Return the rate of each of the `contenders` in each window; all are open at the same time.

    Batches that an epoch drops because they are not full cost time and do not count, so small shard sets
    measure low. On a GPU the clock is read when all work that was asked for is done.
    """
    rates: list[list[float]] = [[] for _ in contenders]
    cpu: list[float] = [0.0] * len(contenders)
    items = [0] * len(contenders)
    steps = len(contenders) * (timing.windows + 1)
    with ExitStack() as stack, progress.task(title, steps, "windows") as task:
        streams, per_window = [], []
        for contender in contenders:
            batches = _endless(stack.enter_context(contender.open()))
            rate = _warm_up(batches, device, min(_WARM_UP_SECONDS, timing.seconds))
            streams.append(batches)
            per_window.append(max(1, round(rate * timing.seconds)))
            task.advance(note=f"{contender.name} is warm")
        for _ in range(timing.windows):
            for index, contender in enumerate(contenders):
                _take(streams[index], min(_BATCHES_AHEAD, per_window[index]))
                cpu_before = _cpu_seconds()
                seconds = _time(streams[index], per_window[index], device)
                count = per_window[index] * contender.items
                cpu[index] += _cpu_seconds() - cpu_before
                items[index] += count
                rates[index].append(count / seconds)
                task.advance(note=f"{contender.name}: {rates[index][-1]:,.0f} {contender.unit}")
    return [
        Measurement(
            name=contender.name,
            unit=contender.unit,
            windows=tuple(rates[index]),
            cpu_ms=1000 * cpu[index] / items[index],
        )
        for index, contender in enumerate(contenders)
    ]


def _endless(batches: Iterable[object]) -> Iterator[object]:
    while True:
        yield from batches


def _warm_up(batches: Iterator[object], device: torch.device, seconds: float) -> float:
    """Run until caches, buffers and clocks have settled; return the batches per second of the second half."""
    start = time.perf_counter()
    count = 0
    while count < _FEWEST_WARM_UP_BATCHES or time.perf_counter() - start < seconds / 2:
        next(batches)
        count += 1
    return count / _time(batches, count, device)


def _time(batches: Iterator[object], count: int, device: torch.device) -> float:
    """Return the seconds that the next `count` batches take."""
    _wait_for(device)
    start = time.perf_counter()
    _take(batches, count)
    _wait_for(device)
    return time.perf_counter() - start


def _take(batches: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(batches)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds() -> float:
    """Return the CPU seconds that this process and its living children have used."""
    children = [
        child
        for tasks in Path("/proc/self/task").glob("*/children")
        for child in tasks.read_text(encoding="ascii").split()
    ]
    return time.process_time() + sum(map(_cpu_seconds_of, children))


def _cpu_seconds_of(process: str) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
