"""The pictures of a study: its scores with intervals, and views arranged as in the paper's Figure 2."""

import dataclasses
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siamusic_fast.analysis import preview
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.studies.results import RowScores, StudyResult
from siamusic_fast.studies.study import Study

SCORES = "scores.png"
VIEWS = "figure2.png"
_TRACKS = 4
"""Tracks in the picture of views."""
_COLORS = ("#0e8a80", "#d9702b", "#7a6fd0", "#c4478d")
_MARKERS = ("o", "s")


def scores(result: StudyResult, path: Path) -> None:
    """Draw the accuracy of each row with its interval, and the paper's where it is known, into a PNG."""
    study = result.study
    protocols = list(study.finetuning)
    figure = Figure(figsize=(9, 1.9 + 0.32 * len(study.rows) * len(protocols)), layout="constrained")
    axis = figure.subplots()
    kinds = list(dict.fromkeys(row[-1] for row in study.rows)) if study.kind == "reproduce" else []
    for place, row in enumerate(study.rows):
        color = _COLORS[kinds.index(row[-1]) % len(_COLORS)] if kinds else _COLORS[0]
        for number, protocol in enumerate(protocols):
            (one,) = (one for one in result.rows if (one.row, one.protocol) == (row, protocol))
            height = place + (number - (len(protocols) - 1) / 2) * 0.36
            _draw_row(axis, one, height, color, _MARKERS[number % len(_MARKERS)])
    axis.axvline(
        result.chance, color="gray", linestyle="--", linewidth=1, label=f"chance: {result.chance:.1%}"
    )
    for number, protocol in enumerate(protocols):
        axis.plot([], [], _MARKERS[number % len(_MARKERS)], color="gray", label=f"protocol {protocol}")
    for number, kind in enumerate(kinds):
        axis.plot([], [], color=_COLORS[number % len(_COLORS)], linewidth=2, label=kind)
    if any("accuracy" in one.paper for one in result.rows):
        axis.plot([], [], "D", color="black", fillstyle="none", label="paper")
    axis.set_yticks(range(len(study.rows)), [", ".join(row) for row in study.rows], fontsize="small")
    axis.set_ylim(len(study.rows) - 0.4, -0.6)
    axis.xaxis.set_major_formatter("{x:.0%}")
    marks = "; small marks: one seed each" if any(len(one.seeds) > 1 for one in result.rows) else ""
    axis.set_xlabel(f"accuracy on {result.tracks:,} test tracks, with 95% intervals{marks}")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    title = f"{study.title}. {study.remark}" if study.remark else study.title
    figure.suptitle(textwrap.fill(title, 100), fontsize="medium")
    figure.savefig(path, dpi=120, format="png")


def _draw_row(axis: Axes, one: RowScores, height: float, color: str, marker: str) -> None:
    if "accuracy" in one.paper:
        axis.plot(one.paper["accuracy"], height, "D", color="black", fillstyle="none", markersize=7)
    if not one.seeds:
        return
    accuracy, (low, high) = one.scores["accuracy"], one.intervals["accuracy"]
    axis.plot([low, high], [height, height], color=color, linewidth=1.5)
    axis.plot(accuracy, height, marker, color=color, markersize=6)
    if len(one.seeds) > 1:
        axis.plot(one.by_seed, [height] * len(one.seeds), "|", color="black", markersize=5)


def views(study: Study, path: Path) -> None:
    """Draw tracks of the test shards as they are and as each recipe changes them, into a PNG.

    The columns are those of Figure 2 of Kim, Hong, Lee 2022 in a study that reproduces it: original, image,
    audio. In an ablation they are the original and two views of the whole recipe.
    """
    first = study.cells[0].config
    frontend = estimate_frontend(study.test, first.mel, short_tracks=first.short_tracks)
    count = min(_TRACKS, study.test.tracks(["training"]))
    augs = ("image", "audio") if study.kind == "reproduce" else (first.aug,)
    by_aug = [
        preview.examples(study.test, frontend, recipe=parse_recipe(aug), count=count, seed=first.seed)
        for aug in augs
    ]
    if len(by_aug) == 2:
        found = [
            dataclasses.replace(image, views=(image.views[0], audio.views[0]))
            for image, audio in zip(*by_aug, strict=True)
        ]
        names = ("Image", "Audio")
    else:
        (found,) = by_aug
        names = ("View 1", "View 2")
    preview.draw(found, frontend.mel, f"Views of {study.test.name}: {', '.join(augs)}", path, names=names)
