"""Measures workloads in turns, A B B A, and reads the clock at the edges of a window only."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import TypeVar

import torch

from siamusic_fast.bench.report import Measurement, number
from siamusic_fast.progress import SILENT, Progress

T = TypeVar("T")

_WARM_UP_SECONDS = 2.0
_MIN_WARM_UP_BATCHES = 2
_MIN_WINDOW_BATCHES = 2
_MAX_REST_SECONDS = 2.0
"""Time that background work gets to end after a window."""
_REST_CHECK_SECONDS = 0.1
_REST_CPU_SECONDS = 0.03
"""CPU time between two checks that counts as rest: clock ticks, and the display of the progress."""


class Clock:
    """The clocks that are read at the edges of a window."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.perf_counter()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that this process has used in all its threads."""
        return time.process_time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Stream(Iterator[T]):
    """The batches of epoch after epoch."""

    def __init__(self, epoch: Iterable[T]) -> None:
        self._epoch, self._batches = epoch, chain.from_iterable(repeat(epoch))

    def __next__(self) -> T:
        return next(self._batches)

    def skip(self, count: int) -> None:
        """Pass over the next `count` batches, by the `skip` of what makes them if it has one."""
        skip = getattr(self._epoch, "skip", None)
        if skip:
            skip(count)
        else:
            take(self._batches, count)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Something that makes batches, to be measured in turns with others."""

    name: str
    items: float
    """Items, such as pairs, in a batch."""
    open: Callable[[], AbstractContextManager[Iterable[object]]]
    """Opens what gives the batches of one epoch each time it is iterated over."""
    unit: str = "pairs/s"
    max_ahead: int = 0
    """Number of batches that it may have made ahead when a window begins, one half-made batch included."""
    setting: str = ""
    """How it is set up, such as 2 threads."""
    ours: bool = False
    """Whether it is a part of this package, and not a baseline or a limit."""
    extends: str = ""
    """Name of the workload that does everything but the last stage of this one, if it is a stage."""
    read_timer: Callable[[], tuple[float, float]] | None = None
    """Returns the seconds since the last reading, and those of them in which it waited for data.

    If it is given, the share of waiting is reported as well.
    """


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to measure."""

    windows: int = 9
    """Number of windows of each workload."""
    seconds: float = 1.5
    """Approximate length of a window in seconds."""


QUICK = Timing(windows=5, seconds=0.5)


def measure_in_turns(
    workloads: Sequence[Workload],
    timing: Timing,
    device: torch.device,
    *,
    openings: int = 1,
    title: str = "Measuring",
    progress: Progress = SILENT,
    clock: Clock | None = None,
) -> list[Measurement]:
    """Return the rate of each of the `workloads` in each window; all of them are open at the same time.

    Every second round goes backwards, so that a steady drift of the machine's speed affects all alike.
    Workloads are opened and warmed up anew `openings` times, so that the spread includes what differs from
    one opening to the next, such as the layout of memory. Before a window, batches that were made ahead are
    used up and one more batch is taken. After a window, background work is waited for, so that the next
    workload does not pay for it. Batches that an epoch drops because they are not full cost time and do not
    count, so small shard sets measure low. On a GPU the clock is read when all queued work is done. The
    share of waiting of each workload with a timer follows after the rates.
    """
    clock = clock or Clock()
    timers = [_Timer(workload, timing, device, clock) for workload in workloads]
    openings = min(openings, timing.windows)
    edges = [opening * timing.windows // openings for opening in range(openings + 1)]
    with progress.task(title, len(timers) * (timing.windows + openings), "windows") as task:
        for first, end in pairwise(edges):
            with ExitStack() as stack:
                for timer in timers:
                    timer.begin(stack.enter_context(timer.workload.open()))
                    stack.callback(timer.end)
                    _rest(clock)
                    task.advance(note=f"{timer.workload.name} is warm")
                rounds = (timers[:: -1 if number % 2 else 1] for number in range(first, end))
                for timer in chain.from_iterable(rounds):
                    rate = timer.take_window()
                    _rest(clock)
                    task.advance(note=f"{timer.workload.name}: {number(rate)} {timer.workload.unit}")
    return [timer.rates() for timer in timers] + [t.waiting() for t in timers if t.workload.read_timer]


class _Timer:
    """Takes the windows of one workload."""

    def __init__(self, workload: Workload, timing: Timing, device: torch.device, clock: Clock) -> None:
        self.workload = workload
        self._timing, self._device, self._clock = timing, device, clock
        self._batches: Stream[object] = Stream(())
        self._count = 0
        self._rates: list[float] = []
        self._cpu_ms: list[float] = []
        self._waiting: list[float] = []

    def begin(self, batches: Iterable[object]) -> None:
        """Warm up with the first of `batches`; the following windows are of the others."""
        self._batches = Stream(batches)
        per_second = self._warm_up(min(_WARM_UP_SECONDS, self._timing.seconds))
        self._count = max(_MIN_WINDOW_BATCHES, round(per_second * self._timing.seconds))

    def end(self) -> None:
        """Let go of the batches, and so of the processes or threads that make them."""
        self._batches = Stream(())

    def take_window(self) -> float:
        """Measure a window and return its rate."""
        self._approach()
        read_timer = self.workload.read_timer
        if read_timer:
            read_timer()
        cpu = self._clock.cpu_seconds()
        seconds = self._time(self._count)
        items = self._count * self.workload.items
        self._cpu_ms.append(1000 * (self._clock.cpu_seconds() - cpu) / items)
        self._rates.append(items / seconds)
        if read_timer:
            whole, waited = read_timer()
            self._waiting.append(100 * min(1.0, waited / whole))
        return self._rates[-1]

    def rates(self) -> Measurement:
        """Return the items per second of all windows."""
        return Measurement(
            name=self.workload.name,
            unit=self.workload.unit,
            windows=tuple(self._rates),
            cpu_windows=tuple(self._cpu_ms),
            setting=self.workload.setting,
            ours=self.workload.ours,
            extends=self.workload.extends,
        )

    def waiting(self) -> Measurement:
        """Return the share of all windows that was spent waiting."""
        return Measurement(
            name=waiting_of(self.workload.name),
            unit="% of the time",
            windows=tuple(self._waiting),
            ours=self.workload.ours,
        )

    def _warm_up(self, seconds: float) -> float:
        """Run until caches, buffers and clocks have settled; return the batches per second after that."""
        start = self._clock.now()
        count = 0
        while count < _MIN_WARM_UP_BATCHES or self._clock.now() - start < seconds / 2:
            next(self._batches)
            count += 1
        self._approach()
        first = self._time(_MIN_WINDOW_BATCHES)
        more = int(_MIN_WINDOW_BATCHES * max(0.0, seconds / 2 - first) / first)
        return (_MIN_WINDOW_BATCHES + more) / (first + (self._time(more) if more else 0.0))

    def _approach(self) -> None:
        """Use up what was made ahead, and take one batch, so that the machine is at work in every window."""
        self._batches.skip(self.workload.max_ahead)
        next(self._batches)
        _wait_for(self._device)

    def _time(self, count: int) -> float:
        """Return the seconds that the next `count` batches take."""
        _wait_for(self._device)
        start = self._clock.now()
        take(self._batches, count)
        _wait_for(self._device)
        return self._clock.now() - start


def waiting_of(name: str) -> str:
    """Return the name of the measurement of how long the workload `name` waits."""
    return f"{name}, waiting for data"


def take(batches: Iterator[object], count: int) -> None:
    """Take the next `count` of `batches`."""
    for _ in range(count):
        next(batches)


def calls(call: Callable[[], object]) -> Iterator[None]:
    """Call `call` for every batch that is asked for: the work itself is what is measured."""
    while True:
        call()
        yield


def _rest(clock: Clock) -> None:
    """Wait until nothing works in the background any more."""
    deadline = clock.now() + _MAX_REST_SECONDS
    before = clock.cpu_seconds()
    while clock.now() < deadline:
        clock.sleep(_REST_CHECK_SECONDS)
        now = clock.cpu_seconds()
        if now - before < _REST_CPU_SECONDS:
            return
        before = now


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
