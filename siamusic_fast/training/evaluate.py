"""Evaluation: a classifier and shards in, scores over every test track out, each track once."""

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.files import atomic_write
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.training import checkpoint
from siamusic_fast.training.distributed import Job
from siamusic_fast.training.models import Classifier, place
from siamusic_fast.training.scores import Scores, scores

CLASSIFIER = "classifier.pt"
CLASSIFIER_PARTS = ("backbone", "classes", "mel", "normalisation", "model", "epoch")
PREDICTIONS = "predictions.csv"
RESULTS = "results.json"
TRACKS_PER_BATCH = 8
CROPS_PER_PASS = 64
"""Bounds the memory of a forward pass, however long the tracks are."""


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Scores of a classifier on the test split, and where they are kept."""

    folder: Path
    data: str
    """Corpus that the tracks are from."""
    scores: Scores


def evaluate(
    run: Path,
    shard_set: ShardSet,
    out: Path | None = None,
    *,
    job: Job | None = None,
    progress: Progress = SILENT,
) -> EvaluateResult:
    """Score the classifier of `run` on every labelled track of the test split.

    `run` is a fine-tuned pre-training run, or the folder of a classifier. A track's class is the one with the
    highest probability, averaged over crops that cover the track. Results go to `out`; by default to the
    folder evaluate beside the classifier, where they replace earlier ones.

    Raises DataError if there is no classifier, or if the shards have other classes or no test tracks.
    """
    job = job or Job()
    path = find_classifier(run)
    saved = checkpoint.load(path, "classifier", CLASSIFIER_PARTS)
    classes = tuple(saved["classes"])
    mel = MelConfig(**saved["mel"])
    check_classes(shard_set, classes)

    model = place(Classifier(saved["backbone"], len(classes)), job.device)
    model.load_state_dict(saved["model"])
    loader = TrackLoader(
        shard_set,
        splits=["test"],
        mel=mel,
        normalisation=Normalisation(**saved["normalisation"]),
        batch_size=TRACKS_PER_BATCH,
        device=job.device,
    )
    tracks = shard_set.tracks(["test"], labelled_only=True)
    folder = path.parent / "evaluate" if out is None else checkpoint.new_folder(out)
    folder.mkdir(exist_ok=True)
    with loader, progress.task("Evaluating", tracks, "tracks") as task:
        probabilities, labels = classify(model, loader, task)
    result = EvaluateResult(
        folder=folder,
        data=shard_set.source,
        scores=scores(probabilities.argmax(dim=1), labels, classes),
    )
    _write_predictions(folder / PREDICTIONS, shard_set, classes, probabilities, labels)
    checkpoint.save_json(folder / RESULTS, {"data": result.data, **dataclasses.asdict(result.scores)})
    return result


@torch.inference_mode()
def classify(model: Classifier, loader: TrackLoader, task: Task) -> tuple[Tensor, Tensor]:
    """Return class probabilities [tracks, classes], averaged over each track's crops, and labels [tracks].

    Both are on the CPU, in the order of the loader. The model is left in evaluation mode.
    """
    model.eval()
    probabilities, labels = [], []
    for mels, batch_labels in loader:
        tracks, crops = mels.shape[:2]
        passes = torch.split(mels.flatten(0, 1), CROPS_PER_PASS)
        by_crop = torch.cat([model(crops_of_a_pass).softmax(dim=1) for crops_of_a_pass in passes])
        probabilities.append(by_crop.view(tracks, crops, -1).mean(dim=1).cpu())
        labels.append(batch_labels.cpu())
        task.advance(tracks)
    return torch.cat(probabilities), torch.cat(labels)


def find_classifier(run: Path) -> Path:
    """Return the classifier in `run` or in its folder finetune. Raises DataError if there is none."""
    for path in (run / CLASSIFIER, run / "finetune" / CLASSIFIER):
        if path.is_file():
            return path
    if not run.is_dir():
        raise DataError(f"no run {str(run)!r}: give the folder that pretrain or finetune made.")
    raise DataError(f"{run} has no classifier: `siamusic-fast finetune {run}` trains one.")


def check_classes(shard_set: ShardSet, classes: tuple[str, ...]) -> None:
    """Raise DataError if the tracks of `shard_set` have other classes than a classifier's."""
    if shard_set.classes != classes:
        raise DataError(
            f"the classifier tells {', '.join(classes)} apart and {shard_set.folder} has "
            f"{', '.join(shard_set.classes)}: give the shards it was trained on with --data."
        )


def _write_predictions(
    path: Path, shard_set: ShardSet, classes: tuple[str, ...], probabilities: Tensor, labels: Tensor
) -> None:
    """Write one row per track, in the order of the shards."""
    keys: dict[str, list[str]] = {}
    for track in read_tracks(shard_set.folder):
        keys.setdefault(track.shard, []).append(track.key)
    shards = shard_set.shards(["test"], labelled_only=True)
    in_order = [key for shard in shards for key in keys[shard.file]]

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "truth", "prediction", "probability"))
    best = probabilities.max(dim=1)
    for key, label, prediction, probability in zip(
        in_order, labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        writer.writerow((key, classes[label], classes[prediction], f"{probability:.4f}"))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
