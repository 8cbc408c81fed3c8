"""What a network says about tracks: averaged over crops and segments, each track once, by any processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from siamusic_fast.config import BACKENDS
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.precision import autocast
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import ShardSet

CROPS_PER_PASS = {"cuda": 256, "cpu": 64}
"""Crops that go through a network together, by the type of device, where no size of batch is known."""


class TrackReader:
    """Reads the labelled tracks of a split as often as it is asked to; each process of `world` has a part.

    `crops` of each track, or of each segment if it was packed in several, evenly spaced; by default as many
    as cover the longest, up to 128. `batch_size` of them go through the network together, by default 256 on
    a GPU and 64 on the CPU. Raises DataError if `split` has no labelled tracks, ConfigError if the crops do
    not fit them.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        frontend: Frontend,
        *,
        crops: int | None = None,
        backend: str = BACKENDS[0],
        batch_size: int | None = None,
        world: World | None = None,
    ) -> None:
        self._job = world or World()
        self._crops_per_pass = batch_size or CROPS_PER_PASS[self._job.device.type]
        self.samples = shard_set.tracks([split], labelled_only=True)
        """Tracks that are whole and segments of others, of all processes."""
        sharing = min(self._job.world_size, self.samples)
        self._has_part = self._job.rank < sharing
        self._loader = TrackLoader(
            shard_set,
            crops=crops,
            crops_per_batch=self._crops_per_pass,
            labelled_only=True,
            splits=[split],
            frontend=frontend,
            batch_size=self._crops_per_pass,
            backend=backend,
            device=self._job.device,
            rank=min(self._job.rank, sharing - 1),
            world_size=sharing,
        )
        tracks = self._loader.plan.tracks
        assert tracks.labels is not None
        places = {name: place for place, name in enumerate(dict.fromkeys(tracks.names))}
        self.names = list(places)
        """Names of the tracks of all processes, in the order of the shards."""
        self._place_of = torch.tensor([places[name] for name in tracks.names])
        self._labels = torch.from_numpy(tracks.labels)

    @property
    def tracks(self) -> int:
        """Number of the tracks of all processes; segments of a track count as one."""
        return len(self.names)

    def averages(self, function: Callable[[Tensor], Tensor], task: Task) -> tuple[Tensor, Tensor]:
        """Return `function` of each track's crops, averaged over them and over its segments, and the labels.

        `function` maps [n, 1, n_mels, frames] to [n, d]. The results, float32 [tracks, d] and int64 [tracks],
        are on the CPU, in the order of `names`, and the same in every process. No gradients are kept and no
        random numbers drawn. `task` advances by the number of samples.
        """
        found = self.share(function, task)
        parts = self._job.gather(torch.cat(found).cpu() if found else None)
        outputs = torch.cat([part for part in parts if part is not None])
        return join_segments(self._place_of, outputs, self._labels)

    def share(self, function: Callable[[Tensor], Tensor], task: Task) -> list[Tensor]:
        """Return what this process has to say to `averages`: by batches, with a row for each sample.

        It stays on the device of the job, so that the host need not wait for it.
        """
        found = []
        for mels, labels in self._loader if self._has_part else ():
            found.append(self._average(function, mels))
            task.advance(len(labels) * self._job.world_size)
        return found

    @torch.no_grad()
    def _average(self, function: Callable[[Tensor], Tensor], mels: Tensor) -> Tensor:
        """Return `function` of `mels`, [tracks, crops, 1, n_mels, frames], averaged over crops."""
        tracks, crops = mels.shape[:2]
        passes = torch.split(mels.flatten(0, 1), self._crops_per_pass)
        with autocast(mels.device):
            outputs = [function(part).float() for part in passes]
        return torch.cat(outputs).view(tracks, crops, -1).mean(dim=1)

    def close(self) -> None:
        """Free what the reader holds; it is of no use afterwards."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrackOutputs(NamedTuple):
    """What a network says about each track of a split, once."""

    names: list[str]
    outputs: Tensor
    """float32 [tracks, d]."""
    labels: Tensor
    """int64 [tracks]."""


def track_outputs(
    function: Callable[[Tensor], Tensor],
    shard_set: ShardSet,
    split: str,
    frontend: Frontend,
    *,
    crops: int | None = None,
    backend: str = BACKENDS[0],
    batch_size: int | None = None,
    world: World | None = None,
    progress: Progress = SILENT,
) -> TrackOutputs:
    """Return what `TrackReader.averages` does, of a reader that serves once, and the names of the tracks."""
    shown = SILENT if world and not world.leads else progress
    with (
        TrackReader(
            shard_set, split, frontend, crops=crops, backend=backend, batch_size=batch_size, world=world
        ) as reader,
        shown.task(f"Reading {split}", reader.samples, "tracks") as task,
    ):
        return TrackOutputs(reader.names, *reader.averages(function, task))


def join_segments(place_of: Tensor, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs [tracks, d], averaged over the samples of each track, and labels [tracks].

    `outputs` [n, d] and `labels` [n] have a row for each sample, and `place_of` [n] the row of its track.
    """
    tracks = int(place_of.max()) + 1
    sums = outputs.new_zeros(tracks, outputs.shape[1]).index_add(0, place_of, outputs)
    joined_labels = labels.new_zeros(tracks).scatter(0, place_of, labels)
    return sums / place_of.bincount().unsqueeze(1), joined_labels


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for a while; each part of it then returns to the mode it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
