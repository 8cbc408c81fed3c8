"""A batch of two views together with everything that was drawn to make them: to look at, and to test with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.config import CROPS, SHORT_TRACKS, MelConfig
from siamusic_fast.pipelines import graph
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.options import LoaderOptions, Pairing, set_up
from siamusic_fast.pipelines.recipes import Recipe, to_recipe
from siamusic_fast.pipelines.stats import normalisation_of
from siamusic_fast.shards.manifest import ShardSet

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
    on_gpu = options.get("device") == "gpu"
    asked: LoaderOptions = {
        "splits": splits,
        "short_tracks": options.get("short_tracks", SHORT_TRACKS[0]),
        "batch_size": tracks,
        "device": "cuda" if on_gpu else "cpu",
        "seed": options.get("seed", 0),
    }
    if mel is not None:
        asked["mel"] = mel
    setup = set_up(data, asked, shuffle=False, labelled_only=False, smaller_batches=True)
    normalisation = normalisation or normalisation_of(setup)
    names: list[str] = []
    pipeline = graph.traced_views(
        setup.source,
        to_recipe(recipe, setup.mel),
        graph.Features(setup.mel, normalisation, "gpu" if on_gpu else "cpu"),
        Pairing(crops=options.get("crops", CROPS[0]), max_distance=options.get("max_distance")),
        names,
        batch_size=setup.batch_size,
        num_threads=1,
        device_id=setup.device.index,
        seed=setup.source.seed,
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
