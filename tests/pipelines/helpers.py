"""What the tests of the pipelines share: loaders with small settings, and two graphs to compare."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.dali.engine import pipeline
from siamusic_fast.pipelines.dali.images import ON_GPU
from siamusic_fast.pipelines.dali.inputs import Feed
from siamusic_fast.pipelines.loaders import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.plan import Batch, Plan
from siamusic_fast.pipelines.prefetch import Buffers, Ready
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.shards.manifest import ShardSet

Array = NDArray[Any]
Pairs = list[tuple[Tensor, Tensor]]

RATE = 22_050
BACKENDS = ("dali", "torch")
LOADERS = (TwoViewLoader, LabelledLoader, TrackLoader)
MEL = MelConfig(seconds=1.0)
IN_DECIBELS = Frontend(mel=MEL, mean=0.0, std=1.0)
NORMALIZED = Frontend(mel=MEL, mean=-30.0, std=10.0)
"""Of which pixels are about as large as those that a network sees."""


def config(**settings: Any) -> dict[str, Any]:
    """Return the keyword arguments of a loader with small batches of small features."""
    return {"frontend": IN_DECIBELS, "batch_size": 4, "seed": 3, "loader_threads": 1, **settings}


def two_views(shard_set: ShardSet, aug: str | Recipe = "image", **settings: Any) -> TwoViewLoader:
    return TwoViewLoader(shard_set, aug=aug, **config(**settings))


def take(loader: Any, batches: int) -> Pairs:
    """Return the next `batches`, of as many epochs as it takes."""
    taken: Pairs = []
    while len(taken) < batches:
        for pair in loader:
            taken.append(pair)
            if len(taken) == batches:
                break
    return taken


def same(one: Pairs, other: Pairs) -> bool:
    """Return whether two lists of batches are equal, bit for bit."""
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for these, those in zip(one, other, strict=True)
        for a, b in zip(these, those, strict=True)
    )


def first_views(loader: TwoViewLoader) -> list[Array]:
    """Return the views of the first batch of `loader`, [rows, n_mels, frames], and close it."""
    with loader:
        return [view[:, 0].float().cpu().numpy() for view in next(iter(loader))]


def labels_of(loader: Any) -> list[int]:
    """Return the labels of one epoch of `loader`, and close it."""
    with loader:
        return [int(label) for _, batch in loader for label in batch]


def plan_of(shard_set: ShardSet, recipe: str | Recipe, **settings: Any) -> Plan:
    plan = two_views(shard_set, recipe, **settings).plan
    assert isinstance(plan, Plan)
    return plan


def read(plan: Plan, batch: Batch) -> list[Array]:
    """Return the spans of `batch`, int16 [rows, samples], with zeros behind the end of the shorter ones."""
    reader, rows = Reader(plan.tracks, plan.frontend), slice(0, len(batch.tracks))
    found = []
    for spans in batch.spans:
        pcm = np.zeros((rows.stop, int(spans.samples.max())), dtype=np.int16)
        reader.read(spans, rows, pcm)
        found.append(pcm)
    reader.close()
    return found


def graph_of_gpu(plan: Plan) -> Any:
    """Return the DALI graph of `plan` for a GPU, not built."""
    return pipeline(plan, Feed(), ON_GPU, on_gpu=True, num_threads=1, device_id=None)


def views_as_on_gpu(plan: Plan) -> list[Array]:
    """Return the views of the first batch by the nodes that a GPU would run, but on the CPU."""
    feed, batch = Feed(), plan.batch((0, 0))
    graph = pipeline(plan, feed, ON_GPU, on_gpu=False, num_threads=1, device_id=None, prefetch_queue_depth=1)
    begun = [extract(batch) for extract in feed.extracts]
    feed.batches = iter([Ready(batch, tuple(read(plan, batch)), begun, Buffers(0, pinned=False))])
    return [np.array(output.as_array())[:, 0] for output in graph.run()]
