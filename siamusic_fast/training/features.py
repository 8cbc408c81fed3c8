"""What a network says about tracks: averaged over crops, each track once, by any number of processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.job import Job
from siamusic_fast.training.precision import autocast

TRACKS_PER_BATCH = 8
CROPS_PER_PASS = 64
"""Bounds the memory of a forward pass, however long the tracks are."""


class TrackReader:
    """Reads the labelled tracks of a split as often as it is asked to; each process of `job` has a part.

    `crops` of each track, evenly spaced; by default as many as cover it. Raises DataError if `split` has no
    labelled tracks, ConfigError if the crops do not fit them.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        mel: MelConfig,
        normalisation: Normalisation,
        *,
        crops: int | None = None,
        job: Job | None = None,
    ) -> None:
        self._job = job or Job()
        self.tracks = shard_set.tracks([split], labelled_only=True)
        """Of all processes."""
        sharing = min(self._job.world_size, self.tracks)
        self._loader: TrackLoader | None = None
        if self._job.rank < sharing:
            self._loader = TrackLoader(
                shard_set,
                crops=crops,
                splits=[split],
                mel=mel,
                normalisation=normalisation,
                batch_size=min(TRACKS_PER_BATCH, self.tracks // sharing),
                device=self._job.device,
                rank=self._job.rank,
                world_size=sharing,
            )

    def averages(self, function: Callable[[Tensor], Tensor], task: Task) -> tuple[Tensor, Tensor]:
        """Return `function` of each track's crops, averaged over them, and the labels.

        `function` maps [n, 1, n_mels, frames] to [n, d]. The results, float32 [tracks, d] and int64 [tracks],
        are on the CPU, in the order of the shards, and the same in every process. No gradients are kept and
        no random numbers drawn. `task` advances by the number of tracks.
        """
        mine: list[tuple[Tensor, Tensor]] = []
        for mels, labels in self._loader or ():
            mine.append((_average(function, mels), labels.cpu()))
            task.advance(len(labels) * self._job.world_size)
        parts = [part for parts in self._job.gather(mine) for part in parts]
        return torch.cat([outputs for outputs, _ in parts]), torch.cat([labels for _, labels in parts])

    def close(self) -> None:
        """Free what the reader holds; it is of no use afterwards."""
        if self._loader is not None:
            self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track_outputs(
    function: Callable[[Tensor], Tensor],
    shard_set: ShardSet,
    split: str,
    mel: MelConfig,
    normalisation: Normalisation,
    *,
    crops: int | None = None,
    job: Job | None = None,
    progress: Progress = SILENT,
) -> tuple[Tensor, Tensor]:
    """Return what `TrackReader.averages` does, of a reader that serves once."""
    shown = SILENT if job and not job.leads else progress
    with (
        TrackReader(shard_set, split, mel, normalisation, crops=crops, job=job) as reader,
        shown.task(f"Reading {split}", reader.tracks, "tracks") as task,
    ):
        return reader.averages(function, task)


@torch.no_grad()
def _average(function: Callable[[Tensor], Tensor], mels: Tensor) -> Tensor:
    """Return `function` of `mels`, [tracks, crops, 1, n_mels, frames], averaged over crops, on the CPU."""
    tracks, crops = mels.shape[:2]
    with autocast(mels.device):
        outputs = [function(part).float() for part in torch.split(mels.flatten(0, 1), CROPS_PER_PASS)]
    return torch.cat(outputs).view(tracks, crops, -1).mean(dim=1).cpu()


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
