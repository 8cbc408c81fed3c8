"""How many pairs per second the loader gives on given shards."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from siamusic_fast.bench.report import Measurement
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

_WARM_UP_SECONDS = 2.0
_FEWEST_WARM_UP_BATCHES = 8
_LONGEST_WINDOW = 3600.0


def measure(
    shard_set: ShardSet,
    *,
    recipe: str,
    backend: str = "dali",
    mel: MelConfig,
    batch_size: int,
    device: torch.device,
    threads: int | None = None,
    windows: int = 5,
    seconds: float = 3.0,
    progress: Progress = SILENT,
) -> Measurement:
    """Return pairs per second of `backend`'s loader in each of `windows` windows of about `seconds`.

    The loader is warmed up first. Batches that an epoch drops because they are not full cost time and do not
    count, so small shard sets measure low. On a GPU the clock is read when all work that was asked for is
    done, at the edges of a window only. Raises `ConfigError` for less than one window, no time, or more
    than an hour.
    """
    if windows < 1 or not 0 < seconds <= _LONGEST_WINDOW:
        raise ConfigError(
            f"windows = {windows} must be at least 1 and seconds = {seconds:g} above 0, "
            f"at most {_LONGEST_WINDOW:g}."
        )
    options: dict[str, Any] = {"threads": threads} if threads else {}
    loader = two_view_loader(
        backend, shard_set, recipe=recipe, mel=mel, batch_size=batch_size, device=device, **options
    )
    with loader, progress.task(f"Measuring {backend}, {recipe}", windows + 1, "windows") as task:
        batches = _endless(loader)
        rate = _warm_up(batches, device)
        task.advance(note="warmed up")
        per_window = max(1, round(rate * seconds))
        rates = []
        for _ in range(windows):
            rates.append(per_window * batch_size / _time(batches, per_window, device))
            task.advance(note=f"{rates[-1]:,.0f} pairs/s")
    return Measurement(name=f"{backend} loader, recipe {recipe}", unit="pairs/s", windows=tuple(rates))


def _endless(loader: Iterable[object]) -> Iterator[object]:
    while True:
        yield from loader


def _warm_up(batches: Iterator[object], device: torch.device) -> float:
    """Run until caches, buffers and clocks have settled; return the batches per second of the second half."""
    start = time.perf_counter()
    count = 0
    while count < _FEWEST_WARM_UP_BATCHES or time.perf_counter() - start < _WARM_UP_SECONDS / 2:
        next(batches)
        count += 1
    return count / _time(batches, count, device)


def _time(batches: Iterator[object], count: int, device: torch.device) -> float:
    """Return the seconds that the next `count` batches take."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
