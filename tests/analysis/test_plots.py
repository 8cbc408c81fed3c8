import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes

from siamusic_fast.analysis.plots import Panel, confusion_matrix, curves, finetuning, pretraining
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.finetune import FinetuneResult

LOSSES = Panel(label="loss", curves={"loss": "training", "validation_loss": "validation"}, from_zero=True)


def log(epochs: int, steps_per_epoch: int = 20) -> list[dict[str, float]]:
    """Lines every 10 steps, and validation figures at the end of each epoch, the best in epoch 2."""
    lines = []
    for step in range(10, epochs * steps_per_epoch + 1, 10):
        line = {"step": step, "epoch": -(-step // steps_per_epoch), "loss": 2 / step}
        if step % steps_per_epoch == 0:
            knn = 0.8 if line["epoch"] == 2 else 0.6
            line |= {"validation_loss": 3 / step, "validation_accuracy": knn, "knn": knn, "collapse": 0.02}
            line |= {"encoder_rank": 20.0, "projector_rank": 30.0}
        lines.append(line)
    return lines


def names(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("epochs", [1, 2, 70])
def test_curves_are_over_whole_epochs_and_training_shares_its_scale_with_validation(epochs: int) -> None:
    figure = curves(log(epochs), [LOSSES], "Run one", kept=(1, "kept classifier"))
    (axis,) = figure.axes
    assert figure.get_suptitle() == "Run one"
    training, validation, _ = axis.get_lines()
    np.testing.assert_allclose(np.asarray(training.get_xdata())[[0, -1]], [0.5, epochs])
    np.testing.assert_allclose(np.asarray(validation.get_xdata()), np.arange(1, epochs + 1))
    assert names(axis) == ["training", "validation", "kept classifier: epoch 1"]
    figure.canvas.draw()
    assert all(tick == round(tick) for tick in axis.get_xticks())
    assert axis.get_ylim()[0] == 0


def test_a_pretraining_run_is_drawn_with_the_best_epoch_marked(shard_set: ShardSet, tmp_path: Path) -> None:
    config: dict[str, Any] = {"backbone": "resnet18", "aug": "image", "data": str(shard_set.folder)}
    config |= {"method": "simclr", "projection_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log(3)))
    pretraining(tmp_path)
    for name in ("loss", "collapse", "rank", "knn"):
        assert image.imread(tmp_path / "plots" / f"{name}.png").shape[1] == 960


def test_chance_is_the_share_of_the_most_frequent_class_among_validation_tracks(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"run": "runs/first", "data": str(shard_set.folder), "target": "class"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log(3)))
    drawn = []
    monkeypatch.setattr("siamusic_fast.analysis.plots._save", lambda figure, path: drawn.append(figure))
    finetuning(
        FinetuneResult(
            folder=tmp_path,
            data=str(shard_set.folder),
            protocol="clean",
            epochs=3,
            kept_epoch=2,
            accuracy=0.8,
            loss=0.1,
            tracks=6,
            seconds=1.0,
        )
    )
    ((losses, accuracy),) = (figure.axes for figure in drawn)
    assert names(losses) == ["training", "validation", "kept classifier: epoch 2"]
    # The corpus has two validation tracks of each of its three genres.
    assert names(accuracy) == ["validation", "chance: 33.3%", "kept classifier: epoch 2"]


def test_the_confusion_matrix_shows_every_count() -> None:
    figure = confusion_matrix([[5, 0], [2, 1]], ["Folk", "Rock"], "Test tracks")
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "0", "2", "1"]
    assert figure.get_suptitle() == "Test tracks"
