"""How a graph gets its inputs: arrays that are fed by name, as nodes on the CPU or moved to the device."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.changes import ImageChange
from siamusic_fast.pipelines.plan import Plan, TrackPlan

DataNode = Any
"""A batch of tensors in a graph. DALI's own class is not typed."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a graph by name, and what its nodes must know of the whole."""

    plan: Plan | TrackPlan
    rows: int
    """Largest batch."""
    on_gpu: bool
    """Whether the data are on a GPU."""
    kinds: Mapping[type[ImageChange], Any]
    """How changes of images are done, `images.ON_CPU` or `images.ON_GPU`."""
    nodes: Mapping[str, DataNode] = field(default_factory=dict)
    prefix: str = ""

    @property
    def mel(self) -> MelConfig:
        """Settings of the mel spectrogram."""
        return self.plan.frontend.mel

    def of(self, name: str) -> "Inputs":
        """Return the same inputs, whose names begin with `name` and a dot."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def cpu(self, name: str) -> DataNode:
        """Return the input `name` where operators want their arguments: on the CPU."""
        return self.nodes[self.prefix + name]

    def data(self, name: str) -> DataNode:
        """Return the input `name` where the data are."""
        return self.cpu(name).gpu() if self.on_gpu else self.cpu(name)
