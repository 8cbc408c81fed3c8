import contextlib
import time
from collections.abc import Iterator

import pytest
import torch

from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.errors import ConfigError

CPU = torch.device("cpu")


def sleeper(name: str, seconds: float, started: list[str]) -> Contender:
    """Makes batches of 10 that take `seconds` each, three to an epoch."""

    @contextlib.contextmanager
    def opened() -> Iterator[list[None]]:
        yield Epoch()  # type: ignore[misc]

    class Epoch:
        def __iter__(self) -> Iterator[None]:
            for _ in range(3):
                started.append(name)
                time.sleep(seconds)
                yield None

    return Contender(name=name, items=10, open=opened)


def test_rates_are_items_per_second_measured_in_turns() -> None:
    order: list[str] = []
    slow, fast = in_turns(
        [sleeper("slow", 0.02, order), sleeper("fast", 0.01, order)], Timing(windows=3, seconds=0.2), CPU
    )
    assert slow.median == pytest.approx(500, rel=0.15)
    assert fast.median == pytest.approx(1000, rel=0.15)
    assert len(slow.windows) == len(fast.windows) == 3
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["slow", "fast"] * 4  # once to warm up
    assert slow.cpu_ms is not None
    assert slow.cpu_ms < 1  # it sleeps


@pytest.mark.parametrize(("windows", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, 4000.0)])
def test_nothing_is_measured_in_no_time_or_for_hours(windows: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Timing(windows=windows, seconds=seconds)
