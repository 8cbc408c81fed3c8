import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.clock import ProcessesClock
from siamusic_fast.bench.timing import Clock, Timing, Workload, measure_in_turns

CPU = torch.device("cpu")


class FakeClock(Clock):
    """Moves when it is told to; until `busy_until` a process in the background takes CPU seconds."""

    def __init__(self) -> None:
        self.time = self.cpu = self.busy_until = 0.0

    def now(self) -> float:
        return self.time

    def cpu_seconds(self) -> float:
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.cpu += min(seconds, max(0.0, self.busy_until - self.time))
        self.time += seconds


def workload(name: str, batches: Iterable[None], ahead: int = 0) -> Workload:
    @contextlib.contextmanager
    def opened() -> Iterator[Iterable[None]]:
        yield batches

    return Workload(name=name, items=10, open=opened, max_ahead=ahead)


def sleeper(clock: FakeClock, seconds: float, log: list[str] | None = None, name: str = "") -> Iterator[None]:
    """Give batches that take `seconds` each."""
    while True:
        if log is not None:
            log.append(name)
        clock.sleep(seconds)
        yield None


def prefetching(clock: FakeClock, seconds: float, queue: int) -> Iterator[None]:
    """Give batches that take `seconds` each, of which `queue` are made while nobody asks."""
    ready, started = 0, clock.time
    while True:
        made = min(queue - ready, int((clock.time - started) / seconds + 1e-9))
        ready, started = ready + made, started + made * seconds
        if ready == queue:
            started = clock.time
        if ready == 0:
            clock.sleep(started + seconds - clock.time)
            ready, started = 1, clock.time
        ready -= 1
        yield None


def test_rates_are_items_per_second_measured_measure_in_turns() -> None:
    clock, order = FakeClock(), list[str]()
    slow, fast = measure_in_turns(
        [
            workload("slow", sleeper(clock, 0.2, order, "slow")),
            workload("fast", sleeper(clock, 0.1, order, "fast")),
        ],
        Timing(windows=3, seconds=2.0),
        CPU,
        clock=clock,
    )
    assert slow.windows == pytest.approx([50] * 3)
    assert fast.windows == pytest.approx([100] * 3)
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["slow", "fast", "slow", "fast", "slow", "fast"]  # to warm up, then A B B A A B
    assert slow.cpu_ms == fast.cpu_ms == 0  # they sleep


def test_batches_made_in_advance_are_no_throughput() -> None:
    clock = FakeClock()
    honest, flattered, _ = measure_in_turns(
        [
            workload("honest", prefetching(clock, 1.0, queue=6), ahead=6),
            workload("flattered", prefetching(clock, 1.0, queue=3)),
            workload("slow", sleeper(clock, 10.0)),
        ],
        Timing(windows=3, seconds=4.0),
        CPU,
        clock=clock,
    )
    assert honest.windows == pytest.approx([10] * 3)
    assert min(flattered.windows) > 15


def test_a_window_has_two_batches_however_slow_they_are() -> None:
    clock, log = FakeClock(), list[str]()
    measure_in_turns(
        [workload("slow", sleeper(clock, 9.0, log))], Timing(windows=1, seconds=1.0), CPU, clock=clock
    )
    # To warm up; one more and those that tell how fast it is; one more and those of the window.
    assert len(log) == 2 + 3 + 3


@pytest.mark.parametrize("ahead", [0, 2])
def test_every_window_begins_behind_a_whole_batch_and_with_none_in_advance(ahead: int) -> None:
    clock, log = FakeClock(), list[str]()

    class Readable:
        """What can be passed over."""

        def __iter__(self) -> Iterator[None]:
            return sleeper(clock, 1.0, log, "made")

        def skip(self, count: int) -> None:
            log.extend(["passed over"] * count)

    one = workload("one", Readable(), ahead)
    (found,) = measure_in_turns([one], Timing(windows=2, seconds=2.0), CPU, clock=clock)
    passed, made = ["passed over"] * ahead, ["made"]
    assert log == 2 * made + passed + 3 * made + 2 * (passed + 3 * made)
    assert found.windows == pytest.approx([10, 10])


def test_what_goes_on_after_a_window_is_not_booked_to_the_next() -> None:
    clock = FakeClock()

    def greedy() -> Iterator[None]:
        while True:
            clock.sleep(0.5)
            clock.busy_until = clock.time + 1.0
            yield None

    first, modest = measure_in_turns(
        [workload("greedy", greedy()), workload("modest", sleeper(clock, 0.5))],
        Timing(windows=3, seconds=1.0),
        CPU,
        clock=clock,
    )
    assert max(first.cpu_windows) > 0
    assert max(modest.cpu_windows) == pytest.approx(0)


def test_what_never_rests_is_waited_for_two_seconds_only() -> None:
    clock = FakeClock()
    clock.busy_until = 1e9
    measure_in_turns([workload("one", sleeper(clock, 0.5))], Timing(windows=1, seconds=1.0), CPU, clock=clock)
    assert clock.time < 2 * 2.2 + 8 * 0.5


def test_the_share_of_waiting_is_that_of_the_timer() -> None:
    clock = FakeClock()
    waiter = workload("A", sleeper(clock, 0.5))
    watched = Workload(name="A", items=10, open=waiter.open, read_timer=lambda: (2.0, 0.5))
    rates, waiting = measure_in_turns([watched], Timing(windows=2, seconds=1.0), CPU, clock=clock)
    assert rates.name == "A"
    assert (waiting.name, waiting.unit) == ("A, waiting for data", "% of the time")
    assert waiting.windows == (25.0, 25.0)


def test_a_steady_drift_of_the_machine_is_shared_alike() -> None:
    clock = FakeClock()

    def slower_and_slower() -> Iterator[None]:
        while True:
            clock.sleep(0.1 + clock.time / 1000)
            yield None

    first, second = measure_in_turns(
        [workload("first", slower_and_slower()), workload("second", slower_and_slower())],
        Timing(windows=4, seconds=2.0),
        CPU,
        clock=clock,
    )
    quotients = [a / b for a, b in zip(first.windows, second.windows, strict=True)]
    assert sum(quotient > 1 for quotient in quotients) == 2


@pytest.mark.parametrize(("windows", "openings"), [(4, 2), (5, 2), (1, 1)])
def test_everything_is_opened_anew_as_often_as_there_are_windows(windows: int, openings: int) -> None:
    clock, opened = FakeClock(), list[str]()

    @contextlib.contextmanager
    def opening() -> Iterator[Iterator[None]]:
        opened.append("open")
        yield sleeper(clock, 0.5)
        opened.append("closed")

    one = Workload(name="one", items=10, open=opening)
    (found,) = measure_in_turns([one], Timing(windows=windows, seconds=1.0), CPU, openings=2, clock=clock)
    assert found.windows == pytest.approx([20] * windows)
    assert opened == ["open", "closed"] * openings


def test_a_child_that_ends_while_it_is_looked_at_has_no_cpu_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: object, **__: object) -> str:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_text", ended)
    assert ProcessesClock().cpu_seconds() > 0
