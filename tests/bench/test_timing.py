import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from siamusic_fast.bench.timing import Clock, Contender, Timing, alone, in_turns
from siamusic_fast.errors import ConfigError

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


def contender(name: str, batches: Iterable[None], ahead: int = 0) -> Contender:
    @contextlib.contextmanager
    def opened() -> Iterator[Iterable[None]]:
        yield batches

    return Contender(name=name, items=10, open=opened, ahead=ahead)


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


def test_rates_are_items_per_second_measured_in_turns() -> None:
    clock, order = FakeClock(), list[str]()
    slow, fast = in_turns(
        [
            contender("slow", sleeper(clock, 0.2, order, "slow")),
            contender("fast", sleeper(clock, 0.1, order, "fast")),
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
    honest, flattered, _ = in_turns(
        [
            contender("honest", prefetching(clock, 1.0, queue=6), ahead=6),
            contender("flattered", prefetching(clock, 1.0, queue=3)),
            contender("slow", sleeper(clock, 10.0)),
        ],
        Timing(windows=3, seconds=4.0),
        CPU,
        clock=clock,
    )
    assert honest.windows == pytest.approx([10] * 3)
    assert min(flattered.windows) > 15


def test_a_window_has_two_batches_however_slow_they_are() -> None:
    clock, log = FakeClock(), list[str]()
    in_turns([contender("slow", sleeper(clock, 9.0, log))], Timing(windows=1, seconds=1.0), CPU, clock=clock)
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

    one = contender("one", Readable(), ahead)
    (found,) = in_turns([one], Timing(windows=2, seconds=2.0), CPU, clock=clock)
    passed, made = ["passed over"] * ahead, ["made"]
    assert log == 2 * made + passed + 3 * made + 2 * (passed + 3 * made)
    assert found.windows == pytest.approx([10, 10])


@pytest.mark.parametrize(("worth", "batches"), [(0.0, 5 + 2 * 3), (1e9, 5)])
def test_alone_one_that_warms_up_too_slowly_has_no_window(worth: float, batches: int) -> None:
    log = list[str]()
    one = contender("one", sleeper(FakeClock(), 1.0, log))
    timing = Timing(windows=2, seconds=1e-9)
    assert alone(one, timing, CPU, worth=worth) > 0
    assert len(log) == batches


def test_what_goes_on_after_a_window_is_not_booked_to_the_next() -> None:
    clock = FakeClock()

    def greedy() -> Iterator[None]:
        while True:
            clock.sleep(0.5)
            clock.busy_until = clock.time + 1.0
            yield None

    first, modest = in_turns(
        [contender("greedy", greedy()), contender("modest", sleeper(clock, 0.5))],
        Timing(windows=3, seconds=1.0),
        CPU,
        clock=clock,
    )
    assert max(first.cpu_windows) > 0
    assert max(modest.cpu_windows) == pytest.approx(0)


def test_what_never_rests_is_waited_for_two_seconds_only() -> None:
    clock = FakeClock()
    clock.busy_until = 1e9
    in_turns([contender("one", sleeper(clock, 0.5))], Timing(windows=1, seconds=1.0), CPU, clock=clock)
    assert clock.time < 2 * 2.2 + 8 * 0.5


def test_the_share_of_waiting_is_that_of_the_stopwatch() -> None:
    clock = FakeClock()

    class Watch:
        def read(self) -> tuple[float, float]:
            return 2.0, 0.5

    waiter = contender("A", sleeper(clock, 0.5))
    watched = Contender(name="A", items=10, open=waiter.open, stopwatch=Watch())
    rates, waiting = in_turns([watched], Timing(windows=2, seconds=1.0), CPU, clock=clock)
    assert rates.name == "A"
    assert (waiting.name, waiting.unit) == ("A, waiting for data", "% of the time")
    assert waiting.windows == (25.0, 25.0)


@pytest.mark.parametrize(("windows", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, 4000.0)])
def test_nothing_is_measured_in_no_time_or_for_hours(windows: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Timing(windows=windows, seconds=seconds)


def test_a_steady_drift_of_the_machine_is_shared_alike() -> None:
    clock = FakeClock()

    def slower_and_slower() -> Iterator[None]:
        while True:
            clock.sleep(0.1 + clock.time / 1000)
            yield None

    first, second = in_turns(
        [contender("first", slower_and_slower()), contender("second", slower_and_slower())],
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

    one = Contender(name="one", items=10, open=opening)
    (found,) = in_turns([one], Timing(windows=windows, seconds=1.0), CPU, openings=2, clock=clock)
    assert found.windows == pytest.approx([20] * windows)
    assert opened == ["open", "closed"] * openings


def test_a_child_that_ends_while_it_is_looked_at_has_no_cpu_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: object, **__: object) -> str:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_text", ended)
    assert Clock().cpu_seconds() > 0
