"""Pictures of a run: how training went, and which genres a classifier takes for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from siamusic_fast.evaluation.evaluate import EvaluateResult
from siamusic_fast.training.pretrain import HEALTHY_COLLAPSE
from siamusic_fast.training.run_log import read_log


def pretraining(run: Path) -> None:
    """Draw loss, collapse measure and, if it was looked at, kNN accuracy of `run` into its folder plots."""
    lines = read_log(run)
    training_curves(lines, {"loss": "loss"}, run / "plots" / "loss.png")
    training_curves(
        lines,
        {"collapse": "collapse measure"},
        run / "plots" / "collapse.png",
        references={"collapse": (HEALTHY_COLLAPSE, "healthy: 1/√d")},
    )
    if any("knn" in line for line in lines):
        training_curves(lines, {"knn": "kNN accuracy on validation"}, run / "plots" / "knn.png")


def finetuning(folder: Path) -> None:
    """Draw losses and validation accuracy of the fine-tuning run in `folder` into its folder plots."""
    columns = {
        "loss": "training loss",
        "validation_loss": "validation loss",
        "validation_accuracy": "validation accuracy",
    }
    training_curves(read_log(folder), columns, folder / "plots" / "curves.png", x="epoch")


def evaluation(result: EvaluateResult) -> None:
    """Draw the confusion matrix of `result` beside its figures."""
    names = [one.name for one in result.scores.classes]
    confusion_matrix(result.scores.confusion, names, result.folder / "confusion.png")


def training_curves(
    lines: Sequence[Mapping[str, float]],
    columns: Mapping[str, str],
    path: Path,
    *,
    x: str = "step",
    references: Mapping[str, tuple[float, str]] | None = None,
) -> None:
    """Write a PNG with one curve under the other, all over `x`, from the lines of a metrics.jsonl.

    `columns` maps names in the lines to what their axes say; a name in `references` gets a dashed line at a
    height above 0, with words on it, and an axis from 0.
    """
    figure = Figure(figsize=(8, 0.6 + 2.2 * len(columns)), layout="constrained")
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    few = len(lines) <= 50
    for axis, (name, label) in zip(axes, columns.items(), strict=True):
        points = [(line[x], line[name]) for line in lines if name in line]
        axis.plot(*np.array(points).T, linewidth=1.5, marker="." if few else None)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if references and name in references:
            height, words = references[name]
            axis.axhline(height, color="gray", linestyle="--", linewidth=1, label=words)
            axis.set_ylim(0, 1.15 * max(height, *(value for _, value in points)))
            axis.legend(loc="best", frameon=False)
    axes[-1].set_xlabel(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Write a PNG of `matrix`, counts by truth (row) and prediction (column).

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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
