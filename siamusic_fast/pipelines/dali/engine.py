"""From samples and operations to views, in DALI: one graph for CPU and GPU, fed batch by batch.

spans ─▶ [to GPU] ─▶ wave ─▶ |STFT| ─▶ tempo ─▶ mel ─▶ dB, normalized ─▶ image ─▶ [1, n_mels, frames]
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from siamusic_fast.pipelines.dali.images import ON_CPU, ON_GPU, ImageNodes
from siamusic_fast.pipelines.dali.inputs import DataNode, Feed, Inputs
from siamusic_fast.pipelines.dali.waves import log_mels
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Computed, Ready
from siamusic_fast.pipelines.random_numbers import Array

PREFETCH = 2
"""Batches that DALI computes ahead."""


@pipeline_def(enable_conditionals=True)
def views(example: Batch, inputs: Inputs, image_nodes: ImageNodes) -> tuple[DataNode, ...]:
    """Return the views of batches that are built as `example` is, float32 [1, n_mels, frames] each."""
    mel = inputs.plan.frontend.mel
    spans = [inputs.spans(index) for index in range(len(example.spans))]
    shared: dict[int, DataNode] = {}
    outputs = []
    for number, view in enumerate(example.views):
        of_view = inputs.of_view(number)
        image = shared.get(view.span_index) if view.plain else None
        if image is None:
            image = log_mels(spans[view.span_index], view, of_view)
        if view.plain:
            shared[view.span_index] = image
        for index, op in enumerate(view.image):
            image = image_nodes[type(op)](image, op, of_view.of_op("image", index))
        outputs.append(fn.reshape(image, shape=[1, mel.n_mels, mel.frames], layout="CHW"))
    return tuple(outputs)


class DaliEngine:
    """Computes the views of batches that arrive one after the other, a few of them ahead."""

    def __init__(self, plan: Plan | TrackPlan, device: torch.device, threads: int) -> None:
        self._device = device
        self._feed = Feed()
        on_gpu = device.type == "cuda"
        self._pipeline = pipeline(
            plan,
            self._feed,
            ON_GPU if on_gpu else ON_CPU,
            on_gpu=on_gpu,
            num_threads=threads,
            device_id=device.index,
            prefetch_queue_depth=PREFETCH,
        )
        self._pipeline.build()

    def begin(self, batch: Batch) -> list[Sequence[Array]]:
        """Return what the graph is fed for `batch` besides its spans."""
        return [extract(batch) for extract in self._feed.extracts]

    def work(self, batch: Batch, pcm: Sequence[Array], rows: slice, begun: Any) -> None:
        """Leave everything to the graph."""

    def run(self, batches: Iterator[Ready]) -> Iterator[Computed]:
        """Yield the views of each of `batches`, on the device."""
        self._feed.batches = batches
        try:
            while True:
                outputs, event = self._outputs()
                tensors: list[Tensor] = [from_dlpack(output.as_tensor()) for output in outputs]
                yield Computed(self._feed.given.popleft(), tensors, event)
        except StopIteration:
            self._pipeline.reset()
        finally:
            self._feed.batches = iter(())  # what makes them knows the engine

    def _outputs(self) -> tuple[Any, torch.cuda.Event | None]:
        if self._device.type == "cpu":
            return self._pipeline.run(), None
        with torch.cuda.device(self._device):  # DALI takes the stream for one of the current device
            stream = torch.cuda.current_stream()
            outputs = self._pipeline.run(stream)
            return outputs, stream.record_event()


def pipeline(
    plan: Plan | TrackPlan, feed: Feed, image_nodes: ImageNodes, *, on_gpu: bool, **options: Any
) -> Pipeline:
    """Return the graph of `plan`, not built, which gets its batches from `feed`."""
    example = plan.batch((0, 0))
    rows = len(example.spans[0].tracks)
    inputs = Inputs(feed=feed, plan=plan, batch_size=rows, on_gpu=on_gpu, part=lambda batch: batch)
    return views(example, inputs, image_nodes, batch_size=rows, seed=0, **options)
