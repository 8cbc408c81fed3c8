"""Where the test tracks lie in the space of an encoder's features, and which are alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from siamusic_fast.analysis.report.sound import clips, opus
from siamusic_fast.config import BACKENDS
from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.features import extract_features
from siamusic_fast.inference.similar import nearest
from siamusic_fast.models.pretrained import Pretrained
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks

MAX_TRACKS = 800
"""Tracks on a map: so many, with their sound, take 8 MB."""
CLIP_SECONDS = 3.0
"""Length of the sound of a track."""
NEIGHBORS = 5
_MIN_TSNE = 12
"""Tracks below which neighborhoods mean little, and the map is linear."""
_MAX_EXACT = 250
"""Tracks up to which the exact method of t-SNE is faster than the threads of the approximate one."""
_SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class MappedTrack:
    """A track of the map."""

    name: str
    path: str
    """Path of its source file, relative to the corpus."""
    genre: str
    """Class of the track, or of its tags the one that most tracks have."""
    x: float
    y: float
    neighbors: tuple[tuple[int, float], ...]
    """The most similar tracks: the number of each in the map, and the cosine of the features."""
    clip: str
    """Its sound, as a data URI."""


@dataclass(frozen=True, kw_only=True)
class TrackMap:
    """Test tracks in two dimensions."""

    tracks: tuple[MappedTrack, ...]
    of: int
    """Number of labelled test tracks, of which these are some if there are too many for a page."""
    method: str
    """Method that made the map."""


def track_map(
    pretrained: Pretrained,
    shard_set: ShardSet,
    *,
    backend: str = BACKENDS[0],
    world: World | None = None,
    progress: Progress = SILENT,
) -> TrackMap:
    """Return the labelled test tracks of `shard_set`, evenly chosen if they are more than `MAX_TRACKS`.

    Raises DataError if there are none, or if the encoder's features are not finite.
    """
    world = world or World()
    encoder = pretrained.build_encoder(world.device)
    found = extract_features(
        encoder, shard_set, _SPLIT, pretrained.frontend, backend=backend, world=world, progress=progress
    )
    names, features = found.names, found.features
    labels = found.labels if shard_set.target == "class" else _most_frequent(found.tags)
    if not features.isfinite().all():
        raise DataError(
            f"the encoder in {pretrained.path} computes features that are not finite: train anew."
        )
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_TRACKS)).round().astype(int))
    directions = F.normalize(features[chosen], dim=1)
    places, method = _in_two_dimensions(directions.numpy())
    paths = {track.track_id: track.path for track in read_tracks(shard_set.folder) if track.split == _SPLIT}
    near = _neighbors(directions)
    names = [names[number] for number in chosen]
    sounds = clips(shard_set, _SPLIT, names, pretrained.frontend, CLIP_SECONDS)
    tracks = []
    with progress.task("Encoding sound", len(names), "tracks") as task:
        for place, (name, sound) in enumerate(zip(names, sounds, strict=True)):
            x, y = places[place].tolist()
            tracks.append(
                MappedTrack(
                    name=name,
                    path=paths[name],
                    genre=shard_set.names(shard_set.target)[int(labels[chosen[place]])],
                    x=x,
                    y=y,
                    neighbors=near[place],
                    clip=opus(sound, shard_set.sample_rate),
                )
            )
            task.advance()
    return TrackMap(tracks=tuple(tracks), of=len(features), method=method)


def _most_frequent(tags: Tensor) -> Tensor:
    """Return for each row of `tags` [tracks, tags] the place of its tag that most tracks have, int64."""
    return (tags * tags.sum(dim=0)).argmax(dim=1)


def _in_two_dimensions(features: NDArray[np.float32]) -> tuple[NDArray[Any], str]:
    """Return places [n, 2] for `features` [n, d], the same each time, and the name of the method."""
    if len(features) < _MIN_TSNE:
        left, lengths, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
        flat = (left * lengths)[:, :2]
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))), "PCA"
    # The first two principal components of equal features cannot be scaled to what t-SNE begins with.
    init = "pca" if features.std(axis=0).max() > 1e-6 else "random"
    method = "exact" if len(features) <= _MAX_EXACT else "barnes_hut"
    tsne = TSNE(perplexity=min(30.0, len(features) / 4), init=init, method=method, random_state=0)
    return tsne.fit_transform(features), "t-SNE"


def _neighbors(features: Tensor) -> list[tuple[tuple[int, float], ...]]:
    """Return for each of `features` [n, d] the rows of the nearest others, and the cosines."""
    cosines, rows = nearest(features, features, NEIGHBORS + 1)
    return [
        tuple((row, cosine) for row, cosine in zip(near, alike, strict=True) if row != place)[:NEIGHBORS]
        for place, (near, alike) in enumerate(zip(rows.tolist(), cosines.tolist(), strict=True))
    ]
