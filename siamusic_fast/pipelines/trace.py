"""A batch of two views together with everything that was drawn to make them: to look at, and to test with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.config import CROPS, SHORT_TRACKS, MelConfig
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.recipes import Recipe, to_recipe
from siamusic_fast.pipelines.source import Source, check_crops
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.shards.manifest import ShardSet, find_shards

Array = NDArray[Any]


class TraceOptions(TypedDict, total=False):
    """How the crops lie, and where and from what seed the views are made."""

    crops: str
    """One of `CROPS`; "same" by default."""
    max_distance: float | None
    """Between the starts of independent crops, in seconds."""
    short_tracks: str
    """One of `SHORT_TRACKS`; "repeat" by default."""
    device: str
    """"cpu", the default, or "gpu"."""
    seed: int
    """0 by default."""


@dataclass(frozen=True, kw_only=True)
class TracedView:
    """One view of every track of a batch, and how it came to be."""

    images: Array
    """Normalised log-mels, float32 [tracks, n_mels, frames]."""
    originals: Array
    """The same crops as they are, with the tempo, pitch and length of the track."""
    waves: list[Array]
    """What the spectrograms are of, float32 [samples] each: with the final pitch, and not yet the tempo."""
    tempos: Array
    """By how much the spectrum stage quickens each wave, float32 [tracks]."""
    positions: Array
    """Where each crop lies, from 0, the start of its track, to 1, the end; float32 [tracks]."""
    draws: dict[str, Array]
    """Each draw, [tracks] or [tracks, values], by names such as cutout.on and cutout.anchors."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Two views of the first tracks of some splits, in the order of the shards."""

    views: tuple[TracedView, TracedView]
    normalisation: Normalisation


def trace(
    data: ShardSet | Path | str,
    *,
    recipe: str | Recipe,
    mel: MelConfig | None = None,
    normalisation: Normalisation | None = None,
    splits: tuple[str, ...] = ("training",),
    tracks: int = 16,
    **options: Unpack[TraceOptions],
) -> Trace:
    """Return what the DALI graph makes of the first `tracks`, or all if there are fewer, as one batch.

    What is returned is on the CPU. Raises what the loaders raise.
    """
    device = options.get("device", "cpu")
    shard_set = data if isinstance(data, ShardSet) else find_shards(data)
    mel = mel or MelConfig(sample_rate=shard_set.sample_rate)
    source = Source(
        shard_set=shard_set,
        shards=shard_set.shards(splits),
        shuffle=False,
        short_tracks=options.get("short_tracks", SHORT_TRACKS[0]),
    )
    check_crops(source, mel)
    normalisation = normalisation or estimate(shard_set, mel)
    names: list[str] = []
    pipeline = graph.traced_views(
        source,
        to_recipe(recipe, mel),
        graph.Features(mel, normalisation, device),
        Pairing(crops=options.get("crops", CROPS[0]), max_distance=options.get("max_distance")),
        names,
        batch_size=min(tracks, source.tracks),
        num_threads=1,
        device_id=0 if device == "gpu" else None,
        seed=options.get("seed", 0),
    )
    outputs = dict(zip(names, (output.as_cpu() for output in pipeline.run()), strict=True))
    return Trace(views=(_view("view_1", outputs), _view("view_2", outputs)), normalisation=normalisation)


def _view(name: str, outputs: dict[str, Any]) -> TracedView:
    rest = {
        key.removeprefix(f"{name}."): output for key, output in outputs.items() if key.startswith(f"{name}.")
    }
    waves = rest.pop("wave")
    arrays = {key: np.array(output.as_array()) for key, output in rest.items()}
    return TracedView(
        images=np.array(outputs[name].as_array())[:, 0],
        originals=arrays.pop("original")[:, 0],
        waves=[np.array(waves.at(index)) for index in range(len(waves))],
        tempos=arrays.pop("tempo"),
        positions=arrays.pop("position"),
        draws=arrays,
    )
