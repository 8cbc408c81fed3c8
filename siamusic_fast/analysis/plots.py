"""Pictures of a run: its curves over the epochs, and how good a classifier is at each genre or tag."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from siamusic_fast.config import PROJECTION_DIMS
from siamusic_fast.evaluation.baselines import PRETRAINED
from siamusic_fast.evaluation.evaluate import EvaluateResult
from siamusic_fast.evaluation.measures import LabelPoint
from siamusic_fast.evaluation.probe import ProbeResult
from siamusic_fast.evaluation.tag_scores import TagScores
from siamusic_fast.inference.predict import Prediction
from siamusic_fast.models.run_files import read_config
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.training.finetune import FinetuneResult
from siamusic_fast.training.run_log import healthy_collapse, read_log

_MAX_GENRES = 5
"""Genres that are drawn along a track."""


def pretraining(run: Path) -> None:
    """Draw loss, collapse measure, effective ranks and any kNN accuracy of `run` into its folder plots."""
    lines, config = read_log(run), read_config(run)
    title = f"{run.name}: pre-training of {config['backbone']} with augmentations {config['aug']}"
    loss = Panel(label="loss", curves={"loss": "training"})
    _save(curves(lines, [loss], title), run / "plots" / "loss.png")
    collapse = Panel(
        label="collapse measure",
        curves={"collapse": "measured"},
        reference=(
            healthy_collapse(config["projection_dim"] or PROJECTION_DIMS[config["method"]]),
            "healthy: 1/√d",
        ),
        from_zero=True,
    )
    rank = Panel(
        label="effective rank",
        curves={"encoder_rank": "encoder", "projector_rank": "projector"},
        from_zero=True,
    )
    _save(curves(lines, [rank], title), run / "plots" / "rank.png")
    _save(curves(lines, [collapse], title), run / "plots" / "collapse.png")
    for name, label in (("knn", "kNN accuracy"), ("knn_roc_auc", "kNN, macro ROC-AUC of tags")):
        measured = [line for line in lines if name in line]
        if not measured:
            continue
        best = max(measured, key=lambda line: (line["epoch"] > 0, line[name]))["epoch"]
        knn = (
            _accuracy_panel(label, name, config)
            if name == "knn"
            else Panel(label=label, curves={name: "validation"}, reference=(0.5, "chance: 50%"))
        )
        _save(curves(lines, [knn], title, kept=(best, "best.pt")), run / "plots" / "knn.png")


def finetuning(result: FinetuneResult) -> None:
    """Draw losses and validation scores of the fine-tuning run `result` into its folder plots."""
    config = read_config(result.folder)
    loss = Panel(
        label="cross-entropy", curves={"loss": "training", "validation_loss": "validation"}, from_zero=True
    )
    score = (
        Panel(
            label="macro average over tags",
            curves={"validation_roc_auc": "ROC-AUC", "validation_pr_auc": "PR-AUC"},
            reference=(0.5, "ROC-AUC by chance: 0.5"),
            from_zero=True,
        )
        if config["target"] == "tags"
        else _accuracy_panel("accuracy", "validation_accuracy", config)
    )
    title = f"Fine-tuning of {Path(config['run']).name} on {Path(config['data']).name}"
    figure = curves(
        read_log(result.folder), [loss, score], title, kept=(result.kept_epoch, "kept classifier")
    )
    _save(figure, result.folder / "plots" / "curves.png")


def evaluation(result: EvaluateResult) -> None:
    """Draw the confusion matrix of `result`, or the scores of each tag, beside its figures."""
    scores = result.scores
    if isinstance(scores, TagScores):
        title = f"{result.data}, test tracks: ROC-AUC {scores.roc_auc:.3f}, PR-AUC {scores.pr_auc:.3f}"
        _save(tag_bars(scores, title), result.folder / "tags.png")
        return
    title = f"{result.data}, test tracks: accuracy {scores.accuracy:.1%}, chance {scores.chance:.1%}"
    figure = confusion_matrix(scores.confusion, [one.name for one in scores.classes], title)
    _save(figure, result.folder / "confusion.png")


def probes(result: ProbeResult) -> None:
    """Draw every measure of `result`, and its curve of label efficiency, beside its figures."""
    panels = len(result.measures) + bool(result.label_curve)
    figure = Figure(figsize=(8, 0.6 + 1.6 * panels + 0.8 * bool(result.label_curve)), layout="constrained")
    heights = [1.0] * len(result.measures) + [1.5] * bool(result.label_curve)
    axes = figure.subplots(panels, 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, measure in zip(axes, result.measures, strict=False):
        for row, (name, value) in enumerate(measure.values.items()):
            low, high = measure.intervals[name]
            color = "C0" if name == PRETRAINED else "gray"
            axis.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=3)
        axis.set_yticks(range(len(measure.values)), measure.values)
        axis.set_ylim(len(measure.values) - 0.5, -0.5)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(alpha=0.3)
        words = f"{measure.title}, against {measure.strongest}: {measure.difference.words}"
        axis.set_title(words, fontsize="small", loc="left")
    if result.label_curve:
        _draw_label_curve(axes[-1], result.label_curve)
    title = f"Probes of {result.architecture.backbone} on {result.data}, with 95% intervals"
    figure.suptitle(textwrap.fill(title, 80), fontsize="medium")
    _save(figure, result.folder / "probes.png")


def _draw_label_curve(axis: Axes, points: Sequence[LabelPoint]) -> None:
    fractions = [point.fraction for point in points]
    for place, name in enumerate(points[0].measure.values):
        values = [point.measure.values[name] for point in points]
        lows, highs = zip(*(point.measure.intervals[name] for point in points), strict=True)
        axis.plot(fractions, values, marker="o", markersize=4, color=f"C{place}", label=name)
        axis.fill_between(fractions, lows, highs, color=f"C{place}", alpha=0.1, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(fractions, [f"{point.fraction:.0%}\n{point.labels} tracks" for point in points])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    title = f"{points[0].measure.title} by share of the labels"
    axis.set_title(title, fontsize="small", loc="left")


def genres_over_time(found: Prediction, path: Path) -> None:
    """Draw the probabilities of the five most probable genres along a track into the file `path`."""
    along = dict(zip(found.classes, found.over_time.T.numpy(), strict=True))
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    marker = "o" if len(found.starts) <= 50 else None
    for name, _ in found.top(_MAX_GENRES):
        axis.plot(found.starts, along[name], marker=marker, markersize=3, label=name)
    axis.set_xlim(0, max(found.seconds, 1e-3))
    axis.set_ylim(0, 1)
    axis.set_xlabel("start of the crop in seconds")
    axis.set_ylabel("probability")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    title = f"{Path(found.path).name or found.key}: genres over time"
    figure.suptitle(textwrap.fill(title, 80).replace("$", r"\$"), fontsize="medium")
    _save(figure, path)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes in a picture of curves over the epochs."""

    label: str
    """Text beside the vertical axis."""
    curves: Mapping[str, str]
    """Name of each curve in the legend, by the name of its values in metrics.jsonl."""
    reference: tuple[float, str] | None = None
    """Height of a dashed line, and its name in the legend."""
    from_zero: bool = False
    """Whether the vertical axis begins at 0."""


def curves(
    lines: Sequence[Mapping[str, float]],
    panels: Sequence[Panel],
    title: str,
    *,
    kept: tuple[int, str] | None = None,
) -> Figure:
    """Return a picture of the `lines` of a metrics.jsonl, with `panels` one under the other.

    The horizontal axis is in epochs: the last of `lines` is the end of an epoch. `kept` marks an epoch, with
    words for the legend.
    """
    figure = Figure(figsize=(8, 1.0 + 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for name, words in panel.curves.items():
            points = curve(lines, name)
            marker = "." if len(points) <= 50 else None
            axis.plot(*points.T, linewidth=1.5, marker=marker, label=words)
        if panel.reference:
            height, words = panel.reference
            axis.axhline(height, color="gray", linestyle="--", linewidth=1, label=words)
        if kept:
            epoch, words = kept
            axis.axvline(epoch, color="black", linestyle=":", linewidth=1, label=f"{words}: epoch {epoch}")
        if panel.from_zero:
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.set_ylabel(panel.label)
        axis.grid(alpha=0.3)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    axes[-1].set_xlim(0, 1.02 * lines[-1]["epoch"])
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("epoch")
    figure.suptitle(textwrap.fill(title, 80), fontsize="medium")
    return figure


def curve(lines: Sequence[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    """Return the values `name` of the `lines` of a metrics.jsonl as points (epoch, value), [n, 2].

    The last of `lines` is the end of an epoch.
    """
    epochs_per_step = lines[-1]["epoch"] / lines[-1]["step"]
    found = [(line["step"] * epochs_per_step, line[name]) for line in lines if name in line]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def validation_chance(data: str) -> float:
    """Return the share of the most frequent class among the validation tracks of the shard set `data`."""
    genres = {
        track.track_id: track.genre
        for track in read_tracks(find_shards(data).folder)
        if track.split == "validation" and track.genre
    }
    return Counter(genres.values()).most_common(1)[0][1] / len(genres)


def _accuracy_panel(label: str, name: str, config: Mapping[str, Any]) -> Panel:
    """Return a panel with the accuracy `name` on the validation tracks of the shards that `config` names."""
    chance = validation_chance(config["data"])
    return Panel(
        label=label, curves={name: "validation"}, reference=(chance, f"chance: {chance:.1%}"), from_zero=True
    )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def tag_bars(scores: TagScores, title: str) -> Figure:
    """Return a picture of ROC-AUC and PR-AUC of each tag, the highest ROC-AUC at the top.

    A mark on each bar of a PR-AUC is what chance has.
    """
    tags = sorted((tag for tag in scores.tags if tag.roc_auc is not None), key=lambda tag: tag.roc_auc or 0)
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(tags)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(tags))
    axis.barh(places + 0.2, [tag.roc_auc or 0 for tag in tags], height=0.36, label="ROC-AUC")
    axis.barh(places - 0.2, [tag.pr_auc or 0 for tag in tags], height=0.36, label="PR-AUC")
    shares = [tag.tracks / scores.tracks for tag in tags]
    axis.scatter(shares, places - 0.2, marker="|", s=60, color="black", label="PR-AUC by chance")
    axis.axvline(0.5, color="gray", linestyle="--", linewidth=1, label="ROC-AUC by chance")
    axis.set_yticks(places, [f"{tag.name} ({tag.tracks})".replace("$", r"\$") for tag in tags])
    axis.set_ylim(-0.6, len(tags) - 0.4)
    axis.set_xlim(0, 1)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    figure.suptitle(textwrap.fill(title, 80), fontsize="medium")
    return figure


def confusion_matrix(matrix: Sequence[Sequence[float]], classes: Sequence[str], title: str) -> Figure:
    """Return a picture of `matrix`, counts by truth (row) and prediction (column).

    Each cell shows its count; its color is the share of the row, so that small classes show too.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.6 * len(classes)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    places = range(len(classes))
    axis.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(places, classes)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    figure.colorbar(image, label="share of the truth's tracks", shrink=0.8)
    figure.suptitle(textwrap.fill(title, round(11 * size)), fontsize="medium")
    return figure
