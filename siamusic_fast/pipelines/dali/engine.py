"""From samples and draws to views, in DALI: one graph for CPU and GPU, fed batch by batch.

spans ─▶ [to GPU] ─▶ wave ─▶ |STFT| ─▶ tempo ─▶ mel ─▶ dB, normalized ─▶ image ─▶ [1, n_mels, frames]
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from siamusic_fast.pipelines.dali import images, waves
from siamusic_fast.pipelines.dali.nodes import DataNode, Inputs
from siamusic_fast.pipelines.draws import Array
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Computed, Ready

PREFETCH = 2
"""Batches that DALI computes ahead."""


@pipeline_def(enable_conditionals=True)
def views(
    source: Callable[[], Sequence[Array]], names: Sequence[str], example: Batch, about: Inputs
) -> tuple[DataNode, ...]:
    """Return the views of batches that are built as `example` is, float32 [1, n_mels, frames] each.

    `source` gives the spans of a batch and what `arrays` makes of it, in the order of `names`.
    """
    nodes = fn.external_source(source=source, num_outputs=len(names), batch=True, no_copy=True)
    inputs = dataclasses.replace(about, nodes={names[at]: nodes[at] for at in range(len(names))})
    spans = [inputs.data(f"spans.{number}") for number in range(len(example.spans))]
    shared: dict[int, DataNode] = {}
    outputs = []
    for number, view in enumerate(example.views):
        at = inputs.of(f"view.{number}")
        image = shared.get(view.span) if view.plain else None
        if image is None:
            image = waves.log_mels(spans[view.span], view, at)
        if view.plain:
            shared[view.span] = image
        for place, change in enumerate(view.image):
            image = inputs.kinds[type(change)].nodes(image, change, at.of(f"image.{place}"))
        outputs.append(fn.reshape(image, shape=[1, inputs.mel.n_mels, inputs.mel.frames], layout="CHW"))
    return tuple(outputs)


def arrays(batch: Batch, plan: Plan | TrackPlan, kinds: Mapping[Any, images.Kind]) -> dict[str, Array]:
    """Return what `views` is fed for `batch` besides spans, by name, with a row for each row of the batch."""
    found: dict[str, Array] = {}
    for number, view in enumerate(batch.views):
        parts = waves.wave_arrays(view, plan)
        for place, change in enumerate(view.image):
            changed = kinds[type(change)].arrays(change, plan.frontend.mel)
            parts |= {f"image.{place}.{name}": array for name, array in changed.items()}
        found |= {f"view.{number}.{name}": array for name, array in parts.items()}
    return found


class Feed:
    """Hands one batch after the other over to a graph, and keeps those whose memory the graph may read.

    It knows nothing of the engine, so that an engine that nobody uses any more ends at once, and with it the
    graph and its threads: a process that is forked later would end them in vain.
    """

    def __init__(self) -> None:
        self.batches: Iterator[Ready] = iter(())
        self.given: deque[Ready] = deque()

    def __call__(self) -> Sequence[Array]:
        ready = next(self.batches)
        self.given.append(ready)
        return [*ready.pcm, *ready.begun]


class DaliEngine:
    """Computes the views of batches that arrive one after the other, a few of them ahead."""

    def __init__(self, plan: Plan | TrackPlan, device: torch.device, threads: int) -> None:
        self._plan, self._device = plan, device
        on_gpu = device.type == "cuda"
        self._kinds = images.ON_GPU if on_gpu else images.ON_CPU
        self._feed = Feed()
        example = plan.batch((0, 0))
        rows = len(example.spans[0].tracks)
        spans = [f"spans.{number}" for number in range(len(example.spans))]
        self._pipeline: Pipeline = views(
            self._feed,
            [*spans, *arrays(example, plan, self._kinds)],
            example,
            Inputs(plan=plan, rows=rows, on_gpu=on_gpu, kinds=self._kinds),
            batch_size=rows,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=PREFETCH,
            seed=0,
        )
        self._pipeline.build()

    def begin(self, batch: Batch) -> list[Array]:
        """Return what the graph is fed for `batch` besides its spans."""
        return list(arrays(batch, self._plan, self._kinds).values())

    def work(self, batch: Batch, pcm: Sequence[Array], rows: slice, begun: list[Array]) -> None:
        """Leave everything to the graph."""

    def run(self, batches: Iterator[Ready]) -> Iterator[Computed]:
        """Yield the views of each of `batches`, on the device."""
        self._feed.batches = batches
        try:
            yield from self._computed()
        finally:
            self._feed.batches = iter(())  # what makes them knows the engine

    def _computed(self) -> Iterator[Computed]:
        while True:
            try:
                outputs, event = self._outputs()
            except StopIteration:
                self._pipeline.reset()
                return
            tensors: list[Tensor] = [from_dlpack(output.as_tensor()) for output in outputs]
            yield Computed(self._feed.given.popleft(), tensors, event)

    def _outputs(self) -> tuple[Any, torch.cuda.Event | None]:
        if self._device.type == "cpu":
            return self._pipeline.run(), None
        with torch.cuda.device(self._device):  # DALI takes the stream for one of the current device
            stream = torch.cuda.current_stream()
            outputs = self._pipeline.run(stream)
            return outputs, stream.record_event()
