"""The figures of a run, such as collapse and waiting time, and the log that holds them."""

import contextlib
import json
import math
import resource
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siamusic_fast.files import LIST_LIMIT, read_regular
from siamusic_fast.models.run_files import LOG_FILE
from siamusic_fast.training.trackers import TrackedRun, Trackers

LOW_RANK = 8.0
"""Effective rank of the encoder's outputs for a batch below which users are warned; that of a small batch may
be as low as a quarter of what is possible."""

T = TypeVar("T")


@torch.no_grad()
def collapse_measure(z: Tensor) -> Tensor:
    """Return the standard deviation of the normalized rows of `z` [B, d], averaged over the d dimensions.

    Chen & He 2021, section 4.1: 1/sqrt(d) if the outputs spread over the sphere, and 0 if all are equal.
    """
    return F.normalize(z.float(), dim=1).std(dim=0).mean()


def healthy_collapse(width: int) -> float:
    """Return the collapse measure of outputs [B, `width`] that spread over the whole sphere.

    Users are warned below half of it. A total collapse does not come near 0 behind a batch norm, which scales
    up what is left: a batch of B with one odd sample still has 2 / sqrt(B) of the healthy value.
    """
    return 1 / math.sqrt(width)


def peak_memory(device: torch.device) -> int:
    """Return the maximum of bytes in use so far: GPU memory of torch, or on the CPU that of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """Measures how long a loop has run since the last reading, and how long it has waited for batches.

    On a GPU the loop only queues work, and the GPU waits until a batch is there. Two events are therefore
    queued around each batch, and the GPU measures the time between them.
    """

    def __init__(self, device: torch.device) -> None:
        self.total_waited = 0.0
        """Seconds spent waiting up to the last reading."""
        self._device = device
        self._started = time.perf_counter()
        self._waits: list[tuple[Any, Any]] = []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; the time until each one arrives counts as waiting."""
        iterator = iter(batches)
        while True:
            asked = self._now()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waits.append((asked, self._now()))
            yield batch

    def _now(self) -> torch.Event | float:
        """Return the time, or on a GPU an event that takes the time when the GPU comes to it."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.Event("cuda", enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context whose time does not count. Work that was queued before it does."""
        paused = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused

    @property
    def batches(self) -> int:
        """Number of batches since the last reading."""
        return len(self._waits)

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last reading, and how many of them were spent waiting.

        The device must have finished all work that was queued.
        """
        waited = 0.0
        for asked, given in self._waits:
            waited += given - asked if isinstance(asked, float) else asked.elapsed_time(given) / 1000
        self._waits.clear()
        self.total_waited += waited
        seconds = time.perf_counter() - self._started
        self._started += seconds
        return seconds, waited


class RunLog:
    """Appends one JSON object per line to metrics.jsonl, and gives the same values to the trackers `loggers`.

    With `active=False`, as on all ranks but the first, it does nothing. `resume_at` is the step from which
    a run is resumed: TensorBoard then drops later ones, and `read_log` takes the last value of each step.
    With `keep_going`, a disk that is full leaves gaps in the log, with a warning, and is no error.
    """

    def __init__(
        self,
        folder: Path,
        loggers: Sequence[str],
        *,
        active: bool = True,
        resume_at: int | None = None,
        keep_going: bool = False,
    ) -> None:
        self._keep_going = keep_going
        self._trackers: Trackers | None = None
        if active:
            self._lines = (folder / LOG_FILE).open("a", encoding="utf-8", buffering=1)
            written = read_regular(folder / LOG_FILE, LIST_LIMIT)
            if written and not written.endswith(b"\n"):  # a crash has cut the last line off
                self._lines.write("\n")
            self._trackers = Trackers(loggers, TrackedRun(folder, resume_at))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._trackers is not None:
            with self._going_on():
                self._lines.close()
            self._trackers.close(finished=error is None)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Return a context in which an error of the disk is a warning, if the run is to keep going."""
        try:
            yield
        except OSError as error:
            if not self._keep_going:
                raise
            warnings.warn(f"the log of the run has a gap: {error.strerror or error}", stacklevel=3)

    def write(self, step: int, **values: float) -> None:
        """Log `values` of `step`."""
        if self._trackers is None:
            return
        with self._going_on():
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._trackers.log(step, values)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return what a run logged: one entry per step, in order, with the values of all lines of that step.

    If a value was logged twice, the last one counts. A line that a crash cut off is left out.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for text in read_regular(folder / LOG_FILE, LIST_LIMIT).decode().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            by_step.setdefault(line["step"], {}).update(line)
    return [by_step[step] for step in sorted(by_step)]


def keep_in_trackers(folder: Path, loggers: Sequence[str]) -> None:
    """Add the pictures and the files of the run in `folder`, which has ended, to the trackers `loggers`.

    A tracker that never knew the run, because it could not be opened, is left out.
    """
    step = read_log(folder)[-1]["step"]
    run = TrackedRun(folder, resume_at=step)
    trackers = Trackers([name for name in loggers if run.is_known_to(name)], run)
    trackers.keep(step)
    trackers.close(finished=True)
