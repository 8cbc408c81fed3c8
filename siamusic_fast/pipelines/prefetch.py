"""Batches made ahead by background threads: planned, read, and begun by the engine."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from siamusic_fast.pipelines.plan import Batch, Place, Plan, TrackPlan
from siamusic_fast.pipelines.random_numbers import Array, blocks
from siamusic_fast.pipelines.reader import Reader

_PLANNERS = 2
"""Batches that are in the making at a time."""


class Buffers:
    """The memory that the spans of one batch are read into, used again for another when that is done.

    It belongs to the batch that it was given to until that is released.
    """

    def __init__(self, samples: int, *, pinned: bool) -> None:
        """Hold spans of up to `samples` samples a row."""
        self._samples, self._pinned = samples, pinned
        self._memory: list[Tensor] = []
        self.busy: torch.cuda.Event | None = None
        """On a GPU, nothing reads the memory any more from when this is over."""

    def take(self, batch: Batch) -> tuple[Array, ...]:
        """Return room for the spans of `batch`, int16 [rows, longest], once nothing reads it any more."""
        if self.busy is not None:
            self.busy.synchronize()
        rooms: list[Array] = []
        for number, spans in enumerate(batch.spans):
            rows, longest = len(spans.tracks), int(spans.samples.max())
            if number == len(self._memory):
                size = rows * self._samples
                self._memory.append(torch.empty(size, dtype=torch.int16, pin_memory=self._pinned))
            rooms.append(self._memory[number][: rows * longest].view(rows, longest).numpy())
        return tuple(rooms)


class Ready(NamedTuple):
    """A batch whose spans have been read."""

    batch: Batch
    pcm: tuple[Array, ...]
    """int16 [rows, samples], one for each of the batch's spans."""
    begun: Any
    """What the engine began with it."""
    buffers: Buffers


class Computed(NamedTuple):
    """A batch whose views have been computed: nothing reads its spans any more."""

    ready: Ready
    views: list[Tensor]
    """float32 [rows, 1, n_mels, frames] each."""
    event: torch.cuda.Event | None
    """On a GPU, nothing reads the spans from when this is over."""


class Engine(Protocol):
    """What computes views: `begin` and `work` in the threads that read, `run` where the views are used."""

    def begin(self, batch: Batch) -> Any:
        """Return what can be prepared before anything is read."""

    def work(self, batch: Batch, pcm: Sequence[Array], rows: slice, begun: Any) -> None:
        """Do what can be done with `rows`, whole blocks of a batch, once they are read."""

    def run(self, batches: Iterator[Ready]) -> Iterator[Computed]:
        """Yield the views of each of `batches`, on the device."""


class Prefetcher:
    """Gives the batches at `places` one after the other, each with its spans read and begun by `engine`.

    Its memory is a ring of `depth` buffers: so many batches are read ahead or in use, and each must be given
    back with `release`. What goes wrong in a thread is raised here.
    """

    def __init__(
        self,
        plan: Plan | TrackPlan,
        reader: Reader,
        engine: Engine,
        places: Iterator[Place],
        *,
        threads: int,
        depth: int,
        pinned: bool = False,
    ) -> None:
        self._plan, self._reader, self._engine, self._places = plan, reader, engine, places
        reader.start()
        self._planners = ThreadPoolExecutor(_PLANNERS, "siamusic-fast-plan")
        self._workers = ThreadPoolExecutor(threads, "siamusic-fast-read")
        self._free = deque(Buffers(plan.max_samples, pinned=pinned) for _ in range(depth))
        self._pending: deque[Future[Ready]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Ready:
        self._ask_for_more()
        assert self._pending or self._free, "every buffer of the ring is in use: release a batch first"
        if not self._pending:
            raise StopIteration
        return self._pending.popleft().result()

    def release(self, computed: Computed) -> None:
        """Take the memory of a batch back."""
        computed.ready.buffers.busy = computed.event
        self._free.append(computed.ready.buffers)
        self._ask_for_more()

    def close(self) -> None:
        """Stop the threads, when they are done with what they are at."""
        self._places = iter(())
        self._reader.stop()
        self._planners.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True)

    def _ask_for_more(self) -> None:
        while self._free:
            place = next(self._places, None)
            if place is None:
                return
            self._pending.append(self._planners.submit(self._make, place, self._free.popleft()))

    def _make(self, place: Place, buffers: Buffers) -> Ready:
        self._reader.reach(self._plan, place)
        batch = self._plan.batch(place)
        pcm, begun = buffers.take(batch), self._engine.begin(batch)
        parts = blocks(len(batch.spans[0].tracks))
        for part in [self._workers.submit(self._work, batch, pcm, rows, begun) for rows in parts]:
            part.result()
        return Ready(batch, pcm, begun, buffers)

    def _work(self, batch: Batch, pcm: tuple[Array, ...], rows: slice, begun: Any) -> None:
        for spans, into in zip(batch.spans, pcm, strict=True):
            self._reader.read(spans, rows, into)
        self._engine.work(batch, pcm, rows, begun)
