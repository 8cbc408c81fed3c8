"""What a recipe does, as a picture in the manner of Figure 2 of Kim, Hong, Lee 2022."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, Recipe
from siamusic_fast.pipelines.source import Source, check_crops
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import PackedTrack, read_tracks

_BATCH = 16
"""Tracks drawn together, so that mixing has partners to choose from."""
_HERTZ_TICKS = (0, 500, 1000, 2000, 4000, 8000, 16000)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One track, as the encoder would meet it; spectrograms are in dB, float32 [n_mels, frames]."""

    label: str
    """What to write beside it."""
    track: PackedTrack
    original: NDArray[np.float32]
    view_1: NDArray[np.float32]
    view_2: NDArray[np.float32]


def examples(
    shard_set: ShardSet, *, recipe: Recipe, mel: MelConfig, count: int, split: str = "training", seed: int = 0
) -> list[Example]:
    """Return the first `count` tracks of `split` with two views each, drawn with `seed`.

    Raises `DataError` if there is no such split, `ConfigError` if `mel` does not fit the tracks or `count` is
    not between 1 and 16.
    """
    if not 1 <= count <= _BATCH:
        raise ConfigError(f"tracks = {count} must lie between 1 and {_BATCH}.")
    source = Source(shard_set=shard_set, shards=shard_set.shards([split]), shuffle=False)
    check_crops(source, mel)
    normalisation = estimate(shard_set, mel)
    pipeline = graph.original_and_views(
        source,
        recipe,
        graph.Features(mel, normalisation, "cpu"),
        batch_size=min(_BATCH, source.tracks),
        num_threads=1,
        device_id=None,
        seed=seed,
    )
    in_decibels = [
        output.as_array()[:, 0] * normalisation.deviation + normalisation.mean for output in pipeline.run()
    ]
    tracks = itertools.islice(
        (track for track in read_tracks(shard_set.folder) if track.split == split), count
    )
    return [
        Example(
            label=f"{track.key}\n{track.genre}",
            track=track,
            original=original,
            view_1=view_1,
            view_2=view_2,
        )
        for track, original, view_1, view_2 in zip(tracks, *in_decibels, strict=False)
    ]


def each_alone(
    shard_set: ShardSet, *, recipe: Recipe, mel: MelConfig, split: str = "training", seed: int = 0
) -> list[Example]:
    """Return the first track of `split` once for each step of `recipe`, alone and certain to happen.

    Raises what `examples` does, and `ConfigError` if the recipe has no steps.
    """
    if not recipe:
        raise ConfigError("The recipe has no augmentation to show: name some with --aug.")
    names = {kind: name for name, kind in AUGMENTATIONS.items()}
    rows = []
    for step in recipe:
        alone = (dataclasses.replace(step, p=1.0),)
        (found,) = examples(shard_set, recipe=alone, mel=mel, count=1, split=split, seed=seed)
        rows.append(dataclasses.replace(found, label=names[type(step)]))
    return rows


def draw(found: list[Example], mel: MelConfig, title: str, path: Path) -> None:
    """Write a PNG to `path`: a row per track with original, view 1 and view 2, on one scale of dB."""
    figure = Figure(figsize=(12, 1.2 + 1.7 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 3, sharex=True, sharey=True, squeeze=False)
    low, high = np.percentile([example.original for example in found], [1, 99.8])
    for row, example in zip(axes, found, strict=True):
        pictures = (example.original, example.view_1, example.view_2)
        for axis, picture in zip(row, pictures, strict=True):
            image = axis.imshow(
                picture,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0.0, mel.seconds, 0.0, mel.n_mels),
                interpolation="nearest",
            )
        row[0].set_ylabel(example.label)
        _label_hertz(row[0], mel)
    for axis, heading in zip(axes[0], ("Original", "View 1", "View 2"), strict=True):
        axis.set_title(heading)
    for axis in axes[-1]:
        axis.set_xlabel("Time (s)")
    figure.colorbar(image, ax=axes, label="dB", aspect=30, pad=0.01)
    figure.suptitle(title)
    figure.supylabel("Frequency (Hz, mel scale)", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def _label_hertz(axis: Axes, mel: MelConfig) -> None:
    """Put round frequencies where they lie among the mel bands.

    Band b is centred on edge b + 1 of n_mels + 2 edges that are evenly spaced in mel from 0 to f_max, and is
    drawn between b and b + 1.
    """
    ticks = [hertz for hertz in _HERTZ_TICKS if hertz <= mel.f_max]
    places = [_mel(hertz) / _mel(mel.f_max) * (mel.n_mels + 1) - 0.5 for hertz in ticks]
    axis.set_yticks(np.clip(places, 0, mel.n_mels).tolist(), [f"{hertz:d}" for hertz in ticks])


def _mel(hertz: float) -> float:
    """Return `hertz` on the HTK mel scale."""
    return float(2595 * np.log10(1 + hertz / 700))
