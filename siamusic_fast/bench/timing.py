"""Measuring in turns: A B A B, each warm, with the clock read at the edges of a window only."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from siamusic_fast.bench.report import Measurement
from siamusic_fast.errors import ConfigError
from siamusic_fast.progress import SILENT, Progress

T = TypeVar("T")

_WARM_UP_SECONDS = 2.0
_FEWEST_WARM_UP_BATCHES = 2
_FEWEST_BATCHES = 2
"""In a window."""
_LONGEST_REST = 2.0
"""Seconds that are waited, at most, for what goes on after a window to end."""
_LOOK_EVERY = 0.1
_AT_REST = 0.03
"""CPU seconds between two looks that are none: clock ticks, and the display of the progress."""
_LONGEST_WINDOW = 3600.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Clock:
    """What is read at the edges of a window."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.perf_counter()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that this process and its living children have used."""
        children = [
            child
            for tasks in Path("/proc/self/task").glob("*/children")
            for child in tasks.read_text(encoding="ascii").split()
        ]
        return time.process_time() + sum(map(_cpu_seconds_of, children))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Stopwatch(Protocol):
    """Measures which part of a window was spent waiting, such as `training.metrics.Stopwatch`."""

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last reading, and those spent waiting."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that makes batches, to be measured beside others."""

    name: str
    items: int
    """In a batch."""
    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Returns what gives the batches of an epoch, again and again."""
    unit: str = "pairs/s"
    ahead: int = 0
    """Batches that it may have made in advance when a window begins, one that is half made included."""
    setting: str = ""
    ours: bool = False
    target: float | None = None
    """These three as in `Measurement`."""
    stopwatch: Stopwatch | None = None
    """Of its waiting, which then is measured as well."""


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
    clock: Clock | None = None,
) -> list[Measurement]:
    """Return the rate of each of the `contenders` in each window; all are open at the same time.

    Before a window, what its contender made in advance is used up; after it, workers that fill their queues
    again are waited for, so that they do not do so at the expense of the next. Batches that an epoch drops
    because they are not full cost time and do not count, so small shard sets measure low. On a GPU the clock
    is read when all work that was asked for is done. Behind the rates follows, for each contender with a
    stopwatch, the share of its windows that it waited.
    """
    clock = clock or Clock()
    steps = len(contenders) * (timing.windows + 1)
    with ExitStack() as stack, progress.task(title, steps, "windows") as task:
        turns = []
        for contender in contenders:
            batches = endless(stack.enter_context(contender.open()))
            turns.append(_Turns(contender, batches, timing, device, clock))
            _rest(clock)
            task.advance(note=f"{contender.name} is warm")
        for _ in range(timing.windows):
            for turn in turns:
                rate = turn.take()
                _rest(clock)
                task.advance(note=f"{turn.contender.name}: {rate:,.0f} {turn.contender.unit}")
    return [turn.rates() for turn in turns] + [turn.waiting() for turn in turns if turn.contender.stopwatch]


class _Turns:
    """The windows of one contender."""

    def __init__(
        self,
        contender: Contender,
        batches: Iterator[object],
        timing: Timing,
        device: torch.device,
        clock: Clock,
    ) -> None:
        """Warm up."""
        self.contender = contender
        self._batches, self._device, self._clock = batches, device, clock
        self._rates: list[float] = []
        self._cpu: list[float] = []
        self._waited: list[float] = []
        per_second = self._warm_up(min(_WARM_UP_SECONDS, timing.seconds))
        self._count = max(_FEWEST_BATCHES, round(per_second * timing.seconds))

    def take(self) -> float:
        """Measure a window and return its rate."""
        _take(self._batches, self.contender.ahead)
        _wait_for(self._device)
        if self.contender.stopwatch:
            self.contender.stopwatch.read()
        cpu = self._clock.cpu_seconds()
        seconds = self._time(self._count)
        items = self._count * self.contender.items
        self._cpu.append(1000 * (self._clock.cpu_seconds() - cpu) / items)
        self._rates.append(items / seconds)
        if self.contender.stopwatch:
            whole, waited = self.contender.stopwatch.read()
            self._waited.append(100 * min(1.0, waited / whole))
        return self._rates[-1]

    def rates(self) -> Measurement:
        """Return the items per second of all windows."""
        return Measurement(
            name=self.contender.name,
            unit=self.contender.unit,
            windows=tuple(self._rates),
            cpu_windows=tuple(self._cpu),
            setting=self.contender.setting,
            ours=self.contender.ours,
            target=self.contender.target,
        )

    def waiting(self) -> Measurement:
        """Return the share of all windows that was spent waiting."""
        return Measurement(
            name=waiting_of(self.contender.name),
            unit="% of the time",
            windows=tuple(self._waited),
            ours=self.contender.ours,
        )

    def _warm_up(self, seconds: float) -> float:
        """Run until caches, buffers and clocks have settled; return the batches per second after that."""
        start = self._clock.now()
        count = 0
        while count < max(_FEWEST_WARM_UP_BATCHES, self.contender.ahead) or (
            self._clock.now() - start < seconds / 2
        ):
            next(self._batches)
            count += 1
        first = self._time(_FEWEST_BATCHES)
        more = int(_FEWEST_BATCHES * max(0.0, seconds / 2 - first) / first)
        return (_FEWEST_BATCHES + more) / (first + (self._time(more) if more else 0.0))

    def _time(self, count: int) -> float:
        """Return the seconds that the next `count` batches take."""
        _wait_for(self._device)
        start = self._clock.now()
        _take(self._batches, count)
        _wait_for(self._device)
        return self._clock.now() - start


def waiting_of(name: str) -> str:
    """Return what the waiting of the contender `name` is called."""
    return f"{name}, waiting for data"


def endless(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from batches


def _rest(clock: Clock) -> None:
    """Wait until this process and its children do nothing any more."""
    deadline = clock.now() + _LONGEST_REST
    before = clock.cpu_seconds()
    while clock.now() < deadline:
        clock.sleep(_LOOK_EVERY)
        now = clock.cpu_seconds()
        if now - before < _AT_REST:
            return
        before = now


def _take(batches: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(batches)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds_of(process: str) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
