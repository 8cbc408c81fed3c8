"""How a graph is fed: every input is a function of a planned batch, which returns an array for each batch."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nvidia.dali import fn
from nvidia.dali.pipeline import do_not_convert

from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Ready
from siamusic_fast.pipelines.random_numbers import Array

DataNode = Any
"""A batch of tensors in a graph. DALI's own class is not typed."""
F = TypeVar("F", bound=Callable[..., Any])
Extract = Callable[[Any, Plan | TrackPlan], Any]
"""Returns an array, or several, from a part of a batch: a view or one of its operations."""


def outside_graph(function: F) -> F:
    """Keep DALI from rewriting `function`, as it does for `if` with all functions that a graph calls."""
    unconverted: F = do_not_convert(function)
    return unconverted


class Feed:
    """Hands one batch after the other over to a graph, and keeps those whose memory the graph may read.

    It does not know the engine. So an engine that nobody uses any more ends at once, and with it the graph
    and its threads. A process that is forked later would try in vain to end them.
    """

    def __init__(self) -> None:
        self.batches: Iterator[Ready] = iter(())
        """Batches to hand over."""
        self.given: deque[Ready] = deque()
        """Batches that were handed over and not yet computed."""
        self.extracts: list[Callable[[Batch], Sequence[Array]]] = []
        """What to prepare of every batch, in this order, as its `Ready.begun`."""
        self._sources: list[tuple[Callable[[Ready], Sequence[Array]], deque[Sequence[Array]]]] = []

    @outside_graph
    def source(self, take: Callable[[Ready], Sequence[Array]], count: int) -> list[DataNode]:
        """Return nodes for the `count` arrays that `take` returns for each batch, on the CPU."""
        waiting: deque[Sequence[Array]] = deque()
        self._sources.append((take, waiting))

        def next_arrays() -> Sequence[Array]:
            if not waiting:  # DALI asks the sources in an order of its own
                self._advance()
            return waiting.popleft()

        nodes = fn.external_source(source=next_arrays, num_outputs=count, batch=True, no_copy=True)
        return list(nodes)

    def _advance(self) -> None:
        ready = next(self.batches)
        self.given.append(ready)
        for take, waiting in self._sources:
            waiting.append(take(ready))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Makes the inputs of a graph from functions of a part of the batch: a view, or one of its operations."""

    feed: Feed
    plan: Plan | TrackPlan
    batch_size: int
    """Rows of the largest batch."""
    on_gpu: bool
    """Whether the data are on a GPU."""
    part: Callable[[Batch], Any]
    """Returns the part of a batch that the functions get."""

    @outside_graph
    def of_view(self, number: int) -> "Inputs":
        """Return the inputs whose functions get a view."""
        return dataclasses.replace(self, part=lambda batch: batch.views[number])

    @outside_graph
    def of_op(self, stage: str, index: int) -> "Inputs":
        """Return the inputs whose functions get an operation of the view at `stage`: `wave` or `image`."""
        return dataclasses.replace(self, part=lambda batch: getattr(self.part(batch), stage)[index])

    @outside_graph
    def spans(self, index: int) -> DataNode:
        """Return the samples of the spans at `index`, int16 [samples], where the data are."""
        return self.on_device(self.feed.source(lambda ready: [ready.pcm[index]], 1)[0])

    @outside_graph
    def several(self, extract: Extract, count: int) -> list[DataNode]:
        """Return the `count` arrays that `extract` returns, on the CPU."""
        index = len(self.feed.extracts)
        self.feed.extracts.append(lambda batch: extract(self.part(batch), self.plan))
        return self.feed.source(lambda ready: ready.begun[index], count)

    @outside_graph
    def cpu(self, extract: Extract) -> DataNode:
        """Return the array that `extract` returns on the CPU, where operators want their arguments."""
        return self.several(lambda part, plan: [extract(part, plan)], 1)[0]

    @outside_graph
    def attribute(self, name: str, dtype: Any) -> DataNode:
        """Return the attribute `name` of a view or an operation as `dtype`, on the CPU."""
        return self.cpu(lambda part, plan: getattr(part, name).astype(dtype))

    @outside_graph
    def data(self, extract: Extract) -> DataNode:
        """Return the array that `extract` returns where the data are."""
        return self.on_device(self.cpu(extract))

    def on_device(self, node: DataNode) -> DataNode:
        """Return `node`, which is on the CPU, where the data are."""
        return node.gpu() if self.on_gpu else node

    @outside_graph
    def values(self, names: Sequence[str]) -> dict[str, DataNode]:
        """Return the numbers that a function of one's own gets, by name, where the data are."""
        return {name: self.data(_value(name)) for name in names}


def _value(name: str) -> Extract:
    return lambda op, plan: op.values[name]
