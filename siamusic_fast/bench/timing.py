"""Measuring in turns: A B B A, each warm, with the clock read at the edges of a window only."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar, runtime_checkable

import torch

from siamusic_fast.bench.report import Measurement, number
from siamusic_fast.errors import ConfigError
from siamusic_fast.progress import SILENT, Progress

T = TypeVar("T")

_WARM_UP_SECONDS = 2.0
_FEWEST_WARM_UP_BATCHES = 2
_FEWEST_BATCHES = 2
"""In a window."""
_FIRST_BATCHES = 1
"""Taken just before a window, so that whatever is measured, the machine is at work when the clock starts."""
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
        lists = Path("/proc/self/task").glob("*/children")
        children = [child for tasks in lists for child in _read(tasks).split()]
        return time.process_time() + sum(map(_cpu_seconds_of, children))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def take(batches: Iterator[object], count: int) -> None:
    """Take the next `count` of `batches`."""
    for _ in range(count):
        next(batches)


@runtime_checkable
class Skipping(Protocol):
    """Batches that can be passed over for less than it takes to make them."""

    def skip(self, count: int) -> None:
        """Use up the next `count` batches that were made, or read, in advance."""


class Stream(Iterator[T]):
    """The batches of epoch after epoch."""

    def __init__(self, epoch: Iterable[T]) -> None:
        self._epoch, self._batches = epoch, endless(epoch)

    def __next__(self) -> T:
        return next(self._batches)

    def skip(self, count: int) -> None:
        """Pass over the next `count` batches, without what is left to do with each if that is possible."""
        if isinstance(self._epoch, Skipping):
            self._epoch.skip(count)
        else:
            take(self._batches, count)


class Stopwatch(Protocol):
    """Measures which part of a window was spent waiting, such as `training.metrics.Stopwatch`."""

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last reading, and those spent waiting."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Batches of a contender that are compared with those of another before both are measured."""

    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Opens what makes them."""
    batches: int
    """Number of batches that are compared."""
    tolerance: float
    """How far statistics may be apart, chance aside, where 1 is the variance of the features."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that makes batches, to be measured beside others."""

    name: str
    items: float
    """Items, such as pairs, in a batch."""
    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Returns what gives the batches of an epoch, again and again."""
    unit: str = "pairs/s"
    ahead: int = 0
    """Batches that it may have made in advance when a window begins, one that is half made included."""
    setting: str = ""
    """How it is set up, as in `Measurement`."""
    ours: bool = False
    """Whether it is this package's work, as in `Measurement`."""
    target: float | None = None
    """What the project asks for at least, as in `Measurement`."""
    stopwatch: Stopwatch | None = None
    """Stopwatch of its waiting, which is measured as well."""
    sample: Sample | None = None
    """Batches to compare, if those of its own size are too few or too slow for that."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure."""

    windows: int = 9
    """How often each contender is measured."""
    seconds: float = 1.5
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
    openings: int = 1,
    title: str = "Measuring",
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> list[Measurement]:
    """Return the rate of each of the `contenders` in each window; all are open at the same time.

    Every second round goes backwards, so that what the machine gains or loses steadily is shared alike.
    Contenders are opened anew, and warmed up, as often as `openings` says, as far as there are windows: how
    memory and threads happen to be laid out, which stays while they are open, then is part of the spread.
    Before a window, what its contender made in advance is used up and one more batch is taken, whoever it is;
    after it, workers that fill their queues again are waited for, so that they do not do so at the expense of
    the next. Batches that an epoch drops because they are not full cost time and do not count, so small shard
    sets measure low. On a GPU the clock is read when all work that was asked for is done. Behind the rates
    follows, for each contender with a stopwatch, the share of its windows that it waited.
    """
    clock = clock or Clock()
    turns = [_Turns(contender, timing, device, clock) for contender in contenders]
    openings = min(openings, timing.windows)
    steps = len(turns) * (timing.windows + openings)
    with progress.task(title, steps, "windows") as task:
        for rounds in _shared_out(timing.windows, openings):
            with ExitStack() as stack:
                for turn in turns:
                    turn.begin(stack.enter_context(turn.contender.open()))
                    stack.callback(turn.end)
                    _rest(clock)
                    task.advance(note=f"{turn.contender.name} is warm")
                for turn in chain(*(turns[:: -1 if number % 2 else 1] for number in rounds)):
                    rate = turn.take()
                    _rest(clock)
                    task.advance(note=f"{turn.contender.name}: {number(rate)} {turn.contender.unit}")
    return [turn.rates() for turn in turns] + [turn.waiting() for turn in turns if turn.contender.stopwatch]


def alone(contender: Contender, timing: Timing, device: torch.device, *, worth: float = 0.0) -> float:
    """Return the items per second of one contender; if its warm-up has less than `worth`, those of that."""
    turns = _Turns(contender, timing, device, Clock())
    with contender.open() as batches:
        rate = turns.begin(batches)
        return median(turns.take() for _ in range(timing.windows)) if rate >= worth else rate


def _shared_out(rounds: int, openings: int) -> list[range]:
    """Return the numbers of the rounds of each opening."""
    edges = [opening * rounds // openings for opening in range(openings + 1)]
    return [range(first, end) for first, end in pairwise(edges)]


class _Turns:
    """The windows of one contender."""

    def __init__(self, contender: Contender, timing: Timing, device: torch.device, clock: Clock) -> None:
        self.contender = contender
        self._timing, self._device, self._clock = timing, device, clock
        self._batches: Stream[object] = Stream(())
        self._count = 0
        self._rates: list[float] = []
        self._cpu: list[float] = []
        self._waited: list[float] = []

    def begin(self, batches: Iterable[object]) -> float:
        """Warm up with the first of `batches`; the following windows are of the others. Return the rate."""
        self._batches = Stream(batches)
        per_second = self._warm_up(min(_WARM_UP_SECONDS, self._timing.seconds))
        self._count = max(_FEWEST_BATCHES, round(per_second * self._timing.seconds))
        return per_second * self.contender.items

    def end(self) -> None:
        """Let go of the batches, and so of the workers that make them."""
        self._batches = Stream(())

    def take(self) -> float:
        """Measure a window and return its rate."""
        self._approach()
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
        while count < _FEWEST_WARM_UP_BATCHES or self._clock.now() - start < seconds / 2:
            next(self._batches)
            count += 1
        self._approach()
        first = self._time(_FEWEST_BATCHES)
        more = int(_FEWEST_BATCHES * max(0.0, seconds / 2 - first) / first)
        return (_FEWEST_BATCHES + more) / (first + (self._time(more) if more else 0.0))

    def _approach(self) -> None:
        """Bring the contender to where any window begins: at work, with nothing made in advance."""
        self._batches.skip(self.contender.ahead)
        take(self._batches, _FIRST_BATCHES)
        _wait_for(self._device)

    def _time(self, count: int) -> float:
        """Return the seconds that the next `count` batches take."""
        _wait_for(self._device)
        start = self._clock.now()
        take(self._batches, count)
        _wait_for(self._device)
        return self._clock.now() - start


def waiting_of(name: str) -> str:
    """Return what the waiting of the contender `name` is called."""
    return f"{name}, waiting for data"


def endless(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from batches


def calls(call: Callable[[], object]) -> Iterator[None]:
    """Call `call` for every batch that is asked for: the work itself is what is measured."""
    while True:
        call()
        yield


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


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds_of(process: str) -> float:
    fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _read(path: Path) -> str:
    """Return what /proc says of a thread or a process, and nothing if it has ended meanwhile."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
