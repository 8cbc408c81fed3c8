"""Retrieval without labels: whether the crops nearest to a crop are of the same track, or the same artist."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamusic_fast.evaluation.intervals import group_numbers
from siamusic_fast.evaluation.standardize import scaling_of

Array = npt.NDArray[np.float64]

_QUERIES_PER_PASS = 256


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """What the crops nearest to each crop are."""

    same_track: Array
    """For each crop that has another one of its track to find: 1 if the nearest is of that track, else 0."""
    same_track_groups: list[str]
    """What each of those crops is resampled with for an interval: its group, or its track if unknown."""
    same_artist: Array
    """Average precision of each crop whose group has a crop of another track."""
    same_artist_groups: list[str]
    """Group of each of those crops."""

    @property
    def r_at_1(self) -> float:
        """Share of crops whose nearest crop, of another place, is of the same track (recall at 1)."""
        return float(self.same_track.mean()) if len(self.same_track) else float("nan")

    @property
    def map(self) -> float:
        """Mean average precision in finding the crops of other tracks of the same group."""
        return float(self.same_artist.mean()) if len(self.same_artist) else float("nan")


def retrieval(
    features: Tensor,
    tracks: Sequence[str],
    groups: Sequence[str] | None = None,
    starts: Sequence[float] | Tensor | None = None,
) -> Retrieval:
    """Rank all crops by their similarity to each of them, and say what is found.

    The similarity is the cosine of features that are centered and scaled by mean and standard deviation of
    all the crops, which takes no labels. For R@1, all other crops are candidates but those that overlap with
    the query: the nearest may be of the same track or of another. For the average precision (Manning,
    Raghavan, Schuetze 2008, section 8.4), the crops of the query's own track are left out, and those of the
    other tracks of its group are to be found.

    Args:
        features: Features of the crops, [crops, d].
        tracks: Name of the track of each crop.
        groups: Group of the track of each crop, such as its artist; "" if unknown. None: all are unknown.
        starts: Where in its track each crop starts, in lengths of a crop: those less than 1 apart overlap.
            None: no crops overlap.

    """
    groups = list(groups) if groups is not None else [""] * len(tracks)
    track = torch.from_numpy(group_numbers(tracks))
    group = torch.from_numpy(group_numbers(groups))
    known = torch.tensor([bool(name) for name in groups])
    place = torch.as_tensor(starts if starts is not None else range(len(tracks)), dtype=torch.float64)
    directions = F.normalize(scaling_of(features)(features).float(), dim=1)
    hits, has_other, precisions, has_artist = [], [], [], []
    for rows in torch.split(torch.arange(len(features)), _QUERIES_PER_PASS):
        cosines = directions[rows] @ directions.T
        own = track[rows, None] == track
        near = own & ((place[rows, None] - place).abs() < 1 - 1e-9)
        nearest = cosines.masked_fill(near, -torch.inf).argmax(dim=1)
        hits.append(track[nearest] == track[rows])
        has_other.append((own & ~near).any(dim=1))
        relevant = (group[rows, None] == group) & known[rows, None] & ~own
        has_artist.append(relevant.any(dim=1))
        precisions.append(average_precision(cosines.masked_fill(own, -torch.inf), relevant))
    kept, found = torch.cat(has_other), torch.cat(has_artist)
    names = [group or f"track {track}" for group, track in zip(groups, tracks, strict=True)]
    return Retrieval(
        same_track=torch.cat(hits)[kept].double().numpy(),
        same_track_groups=[names[place] for place in kept.nonzero()[:, 0].tolist()],
        same_artist=torch.cat(precisions)[found].numpy(),
        same_artist_groups=[names[place] for place in found.nonzero()[:, 0].tolist()],
    )


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the average precision of each row, float64 [n], of items by descending `scores` [n, items].

    It is the mean, over the items that are `relevant`, bool [n, items], of the share of relevant ones among
    the items up to it; 0 for a row without any.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    found = relevant.gather(1, order).double()
    precision = found.cumsum(dim=1) / torch.arange(1, found.shape[1] + 1)
    return (precision * found).sum(dim=1) / found.sum(dim=1).clamp_min(1)
