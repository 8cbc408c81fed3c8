"""A picture of what augmentations do, in the manner of Figure 2 of Kim, Hong, Lee 2022."""

import dataclasses
import itertools
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from numpy.typing import NDArray
from torch import Tensor

from siamusic_fast.config import CROPS, MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.checks import check_crops, check_length
from siamusic_fast.pipelines.ops import (
    PITCH_GRID,
    AddNoise,
    Erase,
    Flip,
    ImageFunction,
    MixImages,
    MixWaves,
    Paste,
    Speed,
    Warp,
    WaveFunction,
)
from siamusic_fast.pipelines.plan import Plan, View
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.recipes import Recipe, aug_name, to_recipe
from siamusic_fast.pipelines.torch.engine import TorchEngine, final_waves, read_and_compute
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import PackedTrack, read_tracks

_BATCH = 16
"""Tracks drawn together, so that mixing has partners to choose from."""
_TITLE_WIDTH = 48
"""Characters that fit above a spectrogram."""
_LABEL_SIZE = 8.0
"""Size of the letters beside a row, in points."""
_LABEL_WIDTH = 92.0
"""Length of the text that fits beside a row, in points."""
_HERTZ_TICKS = (0, 500, 1000, 2000, 4000, 8000, 16000)


@dataclass(frozen=True, kw_only=True)
class ShownView:
    """One view of a track: its spectrogram, and a wave that a person can listen to."""

    decibels: NDArray[np.float32]
    """Spectrogram in dB, [n_mels, frames]."""
    wave: NDArray[np.float32]
    """Wave that the spectrogram was computed from, at its final pitch and at its original tempo."""
    tempo: float
    """Factor by which the spectrogram is faster than `wave`."""
    done: str
    """Names of the augmentations that changed this view, with their strengths; empty if none did."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of the picture: a track and its two views."""

    label: str
    """Text to write beside the row."""
    track: PackedTrack
    """The track that is shown."""
    original: ShownView
    """The crop of view 1 before any augmentation."""
    views: tuple[ShownView, ShownView]
    """The two views of the track."""


def examples(
    shard_set: ShardSet,
    frontend: Frontend,
    *,
    recipe: Recipe,
    count: int,
    split: str = "training",
    crops: str = CROPS[0],
    max_distance: float | None = None,
    seed: int = 0,
) -> list[Example]:
    """Return the first `count` tracks of `split` with two views each, computed by the torch engine.

    `crops` and `max_distance` are those of `PretrainConfig`, and `seed` that of crops and augmentations.
    Raises `DataError` if there is no such split, `ConfigError` if the features do not fit the tracks or
    `count` is not between 1 and 16.
    """
    if not 1 <= count <= _BATCH:
        raise ConfigError(f"count = {count} must lie between 1 and {_BATCH} (on the command line --tracks).")
    check_crops(crops, max_distance)
    tracks = open_tracks(shard_set, [split])
    check_length(tracks, frontend.mel)

    def computed(recipe: Recipe) -> list[list[ShownView]]:
        plan = Plan(
            tracks,
            frontend,
            recipe=recipe,
            views=2,
            independent=crops == "independent",
            max_distance=max_distance,
            batch_size=min(_BATCH, len(tracks)),
            shuffle=False,
            seed=seed,
        )
        return _computed(plan)

    # The crops are the same with and without augmentations.
    (original, _), views = computed(()), computed(to_recipe(recipe, frontend.mel))
    listed = (track for track in read_tracks(shard_set.folder) if track.split == split)
    return [
        Example(
            label=f"{track.key}\n{track.genre}",
            track=track,
            original=original[row],
            views=(views[0][row], views[1][row]),
        )
        for row, track in enumerate(itertools.islice(listed, count))
    ]


def each_alone(shard_set: ShardSet, frontend: Frontend, *, recipe: Recipe, **shown: Any) -> list[Example]:
    """Return the first track of a split once for each step of `recipe`, alone and certain to happen.

    What is `shown` are keywords of `examples`. Raises what it does, and `ConfigError` if the recipe has no
    steps.
    """
    if not recipe:
        raise ConfigError("recipe has no augmentation to show: name some (on the command line --aug).")
    rows = []
    for step in recipe:
        alone = (dataclasses.replace(step, p=1.0),)
        (found,) = examples(shard_set, frontend, recipe=alone, count=1, **shown)
        rows.append(dataclasses.replace(found, label=aug_name(step)))
    return rows


def write_waves(found: list[Example], mel: MelConfig, folder: Path) -> list[Path]:
    """Write both views of each example to `folder` as 16-bit WAV files of what is `audible`; return paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, example in enumerate(found):
        for number, view in enumerate(example.views, start=1):
            name = re.sub(r"[^0-9A-Za-z]+", "-", f"{place:02d} {example.label} view {number}").strip("-")
            paths.append(folder / f"{name}.wav")
            soundfile.write(paths[-1], audible(view, mel), mel.sample_rate, subtype="PCM_16")
    return paths


def audible(view: ShownView, mel: MelConfig) -> NDArray[np.float32]:
    """Return what a view sounds like, as long as a crop, between -1 and 1.

    What is heard is what the image stage gets: the magnitudes of the spectrogram, at the tempo of the view,
    with the phases of a phase vocoder. Steps of the image stage cannot be heard.
    """
    wave: NDArray[np.float32] = _at_tempo(torch.from_numpy(view.wave), view.tempo, mel).clamp(-1, 1).numpy()
    return wave


def decibel_range(found: list[Example]) -> tuple[float, float]:
    """Return the lowest and the highest dB of a color scale on which all `found` are drawn."""
    low, high = np.percentile([example.original.decibels for example in found], [1, 99.8])
    return float(low), float(high)


def draw(
    found: list[Example],
    mel: MelConfig,
    title: str,
    path: Path,
    *,
    names: tuple[str, str] = ("View 1", "View 2"),
) -> None:
    """Write a PNG to `path`: a row per track with the original and two views, on one scale of dB.

    `names` are the titles of the views.
    """
    figure = Figure(figsize=(12, 1.2 + 1.9 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 3, sharex=True, sharey=True, squeeze=False)
    low, high = decibel_range(found)
    for row, example in zip(axes, found, strict=True):
        pictures = (view.decibels for view in (example.original, *example.views))
        done = (
            "Original",
            *(f"{name}: {one.done or 'unchanged'}" for name, one in zip(names, example.views, strict=True)),
        )
        for axis, picture, text in zip(row, pictures, done, strict=True):
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
            axis.set_title(textwrap.fill(text, _TITLE_WIDTH), fontsize="small", loc="left")
        row[0].set_ylabel("\n".join(map(_shortened, example.label.splitlines())), fontsize=_LABEL_SIZE)
        _label_hertz(row[0], mel)
    for axis in axes[-1]:
        axis.set_xlabel("Time (s)")
    figure.colorbar(image, ax=axes, label="dB", aspect=30, pad=0.01)
    figure.suptitle(textwrap.fill(title, 2 * _TITLE_WIDTH))
    figure.supylabel("Frequency (Hz, mel scale)", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def _shortened(text: str) -> str:
    """Return `text` with as much of its middle left out as makes it fit beside a row."""
    shown, kept = text, len(text)
    while (width := TextPath((0, 0), shown, _LABEL_SIZE).get_extents().width) > _LABEL_WIDTH:
        kept = int((kept - 1) * _LABEL_WIDTH / width)
        shown = f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"
    return shown


def _computed(plan: Plan) -> list[list[ShownView]]:
    """Return each view of the first batch of `plan`, with one element for every track."""
    reader, engine = Reader(plan.tracks, plan.frontend), TorchEngine(plan, torch.device("cpu"))
    batch = plan.batch((0, 0))
    pcm, images = read_and_compute(batch, reader, engine)
    (mean, std), found = plan.frontend.statistics, []
    for number, view in enumerate(batch.views):
        decibels = images[number][:, 0].numpy() * std + mean
        waves = final_waves(batch, pcm, number, plan)
        tempos = np.ones(plan.batch_size) if view.stretch is None else view.stretch
        found.append(
            [
                ShownView(
                    decibels=decibels[row],
                    wave=waves[row],
                    tempo=float(tempos[row]),
                    done=", ".join(_done(view, row, plan.frontend.mel)),
                )
                for row in range(plan.batch_size)
            ]
        )
    return found


def _done(view: View, row: int, mel: MelConfig) -> Iterator[str]:
    """Yield the names of the augmentations that change this row of `view`, with their strengths."""
    if view.grid_pitch is not None and view.stretch is not None:
        pitch = view.grid_pitch[row] / PITCH_GRID
        rate = view.stretch[row] * pitch
        if pitch != 1:
            yield f"pitch {12 * np.log2(pitch):+.1f}"
        if not np.isclose(rate, 1):
            yield f"stretch x{rate:.2f}"
    for name, change in view.drawn.items():
        match change:
            case Speed():  # all of them together are the pitch and the rate above
                continue
            case (MixWaves() | MixImages()) as mix if mix.weight[row] and mix.partner[row] != row:
                yield f"{name} {mix.weight[row]:.0%}"
            case AddNoise(factor=on) | Warp(on=on) if on[row]:
                yield name
            case Flip() if change.mels[row] or change.frames[row]:
                yield name
            case Paste() if change.partner[row] != row and _has_area(change.boxes[row]):
                yield name
            case Erase() if _has_area(change.boxes[row]):
                yield name
            case WaveFunction() if _changes(change, row, (1, mel.samples)):
                yield name
            case ImageFunction() if _changes(change, row, (1, mel.n_mels, mel.frames, 1)):
                yield name


def _has_area(boxes: NDArray[Any]) -> bool:
    top, bottom, left, right = boxes.T
    return bool(((bottom > top) & (right > left)).any())


def _changes(change: WaveFunction | ImageFunction, row: int, shape: tuple[int, ...]) -> bool:
    """Whether the function changes an example of this `shape` when it gets the numbers of this row."""
    example = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    values = {name: torch.from_numpy(numbers[row : row + 1]) for name, numbers in change.values.items()}
    return not torch.equal(change.torch(example.clone(), values), example)


def _at_tempo(wave: Tensor, tempo: float, mel: MelConfig) -> Tensor:
    """Return `wave`, [samples], played `tempo` times as fast at the same pitch, as long as a crop."""
    if tempo == 1.0:
        return wave
    window = torch.hann_window(mel.window)
    hop = min(mel.hop_length, mel.window // 2)  # windows that do not overlap cannot be put together again
    spectrum = torch.stft(wave, mel.n_fft, hop, mel.window, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, mel.n_fft // 2 + 1)[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, tempo, advance)[:, : mel.samples // hop + 1]
    return torch.istft(stretched, mel.n_fft, hop, mel.window, window=window)


def _label_hertz(axis: Axes, mel: MelConfig) -> None:
    """Put round frequencies where they lie among the mel bands.

    Band b is centered on edge b + 1 of n_mels + 2 edges that are evenly spaced in mel from 0 to f_max, and is
    drawn between b and b + 1.
    """
    ticks = [hertz for hertz in _HERTZ_TICKS if hertz <= mel.f_max]
    places = [_mel(hertz) / _mel(mel.f_max) * (mel.n_mels + 1) - 0.5 for hertz in ticks]
    axis.set_yticks(np.clip(places, 0, mel.n_mels).tolist(), [f"{hertz:d}" for hertz in ticks])


def _mel(hertz: float) -> float:
    """Return `hertz` on the HTK mel scale."""
    return float(2595 * np.log10(1 + hertz / 700))
