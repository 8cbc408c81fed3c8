"""What a network says about tracks: averaged over crops and segments, each track once, by any processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.options import crops_of
from siamusic_fast.pipelines.source import Source
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import Shard, ShardSet
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.training.job import Job
from siamusic_fast.training.precision import autocast

TRACKS_PER_BATCH = 8
CROPS_PER_BATCH = 256
"""Bounds the memory of a batch: of long tracks, fewer go into one."""
CROPS_PER_PASS = 64
"""Bounds the memory of a forward pass, however long the tracks are."""


class TrackReader:
    """Reads the labelled tracks of a split as often as it is asked to; each process of `job` has a part.

    `crops` of each track, or of each segment if it was packed in several, evenly spaced; by default as many
    as cover the longest, up to 128. `short_tracks` says what is done with those shorter than a crop. Raises
    DataError if `split` has no labelled tracks, ConfigError if the crops do not fit them.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        mel: MelConfig,
        normalisation: Normalisation,
        *,
        short_tracks: str = SHORT_TRACKS[0],
        crops: int | None = None,
        job: Job | None = None,
    ) -> None:
        self._job = job or Job()
        shards = shard_set.shards([split], labelled_only=True)
        samples = _track_ids(shard_set, shards)
        self.samples = len(samples)
        """Tracks that are whole and segments of others, of all processes."""
        places = {name: place for place, name in enumerate(dict.fromkeys(samples))}
        self.names = list(places)
        """Of the tracks of all processes, in the order of the shards."""
        self._place_of = torch.tensor([places[name] for name in samples])
        crops = crops_of(Source(shard_set=shard_set, shards=shards, shuffle=False), mel, crops)
        sharing = min(self._job.world_size, self.samples)
        self._loader: TrackLoader | None = None
        if self._job.rank < sharing:
            self._loader = TrackLoader(
                shard_set,
                crops=crops,
                splits=[split],
                mel=mel,
                normalisation=normalisation,
                short_tracks=short_tracks,
                batch_size=min(TRACKS_PER_BATCH, max(1, CROPS_PER_BATCH // crops), self.samples // sharing),
                device=self._job.device,
                rank=self._job.rank,
                world_size=sharing,
            )

    @property
    def tracks(self) -> int:
        """Of all processes; segments of a track count as one."""
        return len(self.names)

    def averages(self, function: Callable[[Tensor], Tensor], task: Task) -> tuple[Tensor, Tensor]:
        """Return `function` of each track's crops, averaged over them and over its segments, and the labels.

        `function` maps [n, 1, n_mels, frames] to [n, d]. The results, float32 [tracks, d] and int64 [tracks],
        are on the CPU, in the order of `names`, and the same in every process. No gradients are kept and no
        random numbers drawn. `task` advances by the number of samples.
        """
        parts = [part for parts in self._job.gather(self.share(function, task)) for part in parts]
        outputs, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return join_segments(self._place_of, outputs, labels)

    def share(self, function: Callable[[Tensor], Tensor], task: Task) -> list[tuple[Tensor, Tensor]]:
        """Return what this process has to say to `averages`: by batches, with a row for each sample."""
        found = []
        for mels, labels in self._loader or ():
            found.append((_average(function, mels), labels.cpu()))
            task.advance(len(labels) * self._job.world_size)
        return found

    def close(self) -> None:
        """Free what the reader holds; it is of no use afterwards."""
        if self._loader is not None:
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
    mel: MelConfig,
    normalisation: Normalisation,
    *,
    short_tracks: str = SHORT_TRACKS[0],
    crops: int | None = None,
    job: Job | None = None,
    progress: Progress = SILENT,
) -> TrackOutputs:
    """Return what `TrackReader.averages` does, of a reader that serves once, and the names of the tracks."""
    shown = SILENT if job and not job.leads else progress
    with (
        TrackReader(
            shard_set, split, mel, normalisation, short_tracks=short_tracks, crops=crops, job=job
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


def _track_ids(shard_set: ShardSet, shards: Sequence[Shard]) -> list[str]:
    """Return which track each sample in `shards` is, or is a segment of, in their order."""
    by_shard: dict[str, list[str]] = {}
    for sample in read_tracks(shard_set.folder):
        by_shard.setdefault(sample.shard, []).append(sample.track_id)
    return [name for shard in shards for name in by_shard[shard.file]]


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
