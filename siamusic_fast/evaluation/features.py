"""Features per track: the outputs of a network, averaged over the crops and the segments of each track."""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.config import BACKENDS
from siamusic_fast.embedding.extract import CROPS_PER_PASS, Network
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.precision import autocast
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.pipelines.plan import TrackPlan
from siamusic_fast.pipelines.tracks import count_tracks
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.manifest import ShardSet


class TrackFeatures(NamedTuple):
    """Features of the labelled tracks of a split, in the order of the shards, on the CPU."""

    names: list[str]
    """Names of the tracks."""
    features: Tensor
    """float32 [tracks, d]."""
    labels: Tensor
    """int64 [tracks]: the class of each, -1 for none."""
    tags: Tensor
    """uint8 [tracks, tags]: 1 for each tag that a track has."""
    groups: list[str]
    """Groups of the tracks, such as their artists; "" where the group is unknown."""


class CropFeatures(NamedTuple):
    """Features of crops of the tracks of a split, track by track, on the CPU."""

    names: list[str]
    """Name of the track of each crop."""
    features: Tensor
    """float32 [crops, d]."""
    starts: Tensor
    """Where in its track each crop starts, in lengths of a crop, float64 [crops]: those less than 1 apart
    overlap. Segments of a track lie one after the other."""
    groups: list[str]
    """Group of the track of each crop; "" where it is unknown."""


class FeatureExtractor:
    """Computes features of the labelled tracks of a split, as often as it is asked to.

    The processes of `world` share the tracks. The features of a track are the mean over `crops` of it, evenly
    spaced, and over its segments if it was packed in several; by default as many crops as cover the longest
    track, up to 128. `batch_size` crops go through the network together, by default 256 on a GPU and 64 on
    the CPU. The labelled tracks are those with a class, or those with tags if that is the `target`; its
    default is that of the shard set. Raises DataError if `split` has none, ConfigError if the crops do not
    fit them.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        frontend: Frontend,
        *,
        target: str | None = None,
        crops: int | None = None,
        backend: str = BACKENDS[0],
        batch_size: int | None = None,
        world: World | None = None,
    ) -> None:
        target = target or shard_set.target
        self._world = world or World()
        self._crops_per_pass = batch_size or CROPS_PER_PASS[self._world.device.type]
        self.samples = count_tracks(shard_set, [split], target)
        """Number of samples of all processes: whole tracks, and segments of others."""
        sharing = min(self._world.world_size, self.samples)
        self._has_part = self._world.rank < sharing
        self._loader = TrackLoader(
            shard_set,
            crops=crops,
            crops_per_batch=self._crops_per_pass,
            target=target,
            splits=[split],
            frontend=frontend,
            batch_size=self._crops_per_pass,
            backend=backend,
            device=self._world.device,
            rank=min(self._world.rank, sharing - 1),
            world_size=sharing,
        )
        tracks = self._loader.plan.tracks
        assert tracks.labels is not None
        assert tracks.tags is not None
        places = {name: place for place, name in enumerate(dict.fromkeys(tracks.names))}
        self.names = list(places)
        """Names of the tracks of all processes, in the order of the shards; segments of one count once."""
        self.groups = list(dict(zip(tracks.names, tracks.groups, strict=True)).values())
        """Groups of these tracks, in the same order; "" where the group is unknown."""
        self._place_of = torch.tensor([places[name] for name in tracks.names])
        self._labels, self._tags = torch.from_numpy(tracks.labels), torch.from_numpy(tracks.tags)

    def extract(self, network: Network, task: Task) -> TrackFeatures:
        """Return the features that `network` computes of all tracks, the same in every process.

        No gradients are kept and no random numbers drawn. `task` advances by the number of samples.
        """
        outputs = self._gathered(self.extract_own(network, task))
        tracks = len(self.names)
        sums = outputs.new_zeros(tracks, outputs.shape[1]).index_add(0, self._place_of, outputs)
        labels = self._labels.new_zeros(tracks).scatter(0, self._place_of, self._labels)
        tags = self._tags.new_zeros(tracks, self._tags.shape[1])
        tags[self._place_of] = self._tags  # segments of a track have the same
        features = sums / self._place_of.bincount().unsqueeze(1)
        return TrackFeatures(self.names, features, labels, tags, self.groups)

    def extract_crops(self, network: Network, task: Task) -> CropFeatures:
        """Return the features of each crop, where `extract` returns their mean over those of a track."""
        outputs = self._gathered(self.extract_own(network, task, per_crop=True))
        plan = self._loader.plan
        assert isinstance(plan, TrackPlan)
        lengths = torch.from_numpy(plan.tracks.samples) + plan.crop_samples
        before = torch.zeros(len(self.names), dtype=torch.int64)
        starts = torch.from_numpy(plan.starts(np.arange(len(lengths))))
        for sample, track in enumerate(self._place_of.tolist()):
            starts[sample] += before[track]
            before[track] += lengths[sample]
        tracks = self._place_of.repeat_interleave(plan.crops).tolist()
        return CropFeatures(
            names=[self.names[track] for track in tracks],
            features=outputs.flatten(0, 1),
            starts=starts.flatten().double() / plan.crop_samples,
            groups=[self.groups[track] for track in tracks],
        )

    def _gathered(self, own: list[Tensor]) -> Tensor:
        """Return the features of the samples of all processes, on the CPU."""
        parts = self._world.gather(torch.cat(own).cpu() if own else None)
        return torch.cat([part for part in parts if part is not None])

    def extract_own(self, network: Network, task: Task, *, per_crop: bool = False) -> list[Tensor]:
        """Return the features of this process's samples, by batches, each averaged over its crops.

        They stay on the device of the network, so that the host need not wait for it. With `per_crop`, they
        are [samples, crops, d].
        """
        found = []
        for mels, labels in self._loader if self._has_part else ():
            by_crop = self._by_crop(network, mels)
            found.append(by_crop if per_crop else by_crop.mean(dim=1))
            task.advance(len(labels) * self._world.world_size)
        return found

    @torch.no_grad()
    def _by_crop(self, network: Network, mels: Tensor) -> Tensor:
        """Return the features, [samples, crops, d], of `mels`, [samples, crops, 1, n_mels, frames]."""
        samples, crops = mels.shape[:2]
        passes = torch.split(mels.flatten(0, 1), self._crops_per_pass)
        with autocast(mels.device):
            outputs = [network(part).float() for part in passes]
        return torch.cat(outputs).view(samples, crops, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()


def extract_features(
    network: Network,
    shard_set: ShardSet,
    split: str,
    frontend: Frontend,
    *,
    target: str | None = None,
    crops: int | None = None,
    backend: str = BACKENDS[0],
    batch_size: int | None = None,
    world: World | None = None,
    progress: Progress = SILENT,
) -> TrackFeatures:
    """Return what `FeatureExtractor.extract` does, of an extractor that is used once."""
    shown = SILENT if world and not world.leads else progress
    with (
        FeatureExtractor(
            shard_set,
            split,
            frontend,
            target=target,
            crops=crops,
            backend=backend,
            batch_size=batch_size,
            world=world,
        ) as extractor,
        shown.task(f"Reading {split}", extractor.samples, "tracks") as task,
    ):
        return extractor.extract(network, task)
