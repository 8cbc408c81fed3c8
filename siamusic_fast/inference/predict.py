"""Genres or tags of any audio, one track after another as they are heard."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.config import CropConfig
from siamusic_fast.embedding.extract import Heard
from siamusic_fast.embedding.results import nothing_left
from siamusic_fast.embedding.sources import Given, open_sources
from siamusic_fast.models.networks import Classifier, evaluating, listening_of
from siamusic_fast.models.pretrained import load_classifier
from siamusic_fast.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of one track."""

    key: str
    path: str
    label: str
    """Class of the track, empty if unknown."""
    seconds: float
    """Length of the track."""
    classes: tuple[str, ...]
    """Names of the classes or tags."""
    target: str
    """`class`, whose probabilities add up to 1, or `tags`, each of which has one of its own."""
    probabilities: Tensor
    """float32 [classes], the mean over the crops."""
    starts: list[float]
    """Second at which each crop starts."""
    over_time: Tensor
    """float32 [crops, classes]."""

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, the best first."""
        best = self.probabilities.topk(min(count, len(self.classes)))
        return [
            (self.classes[index], value)
            for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def above(self, threshold: float) -> list[tuple[str, float]]:
        """Return the classes whose probability is at least `threshold`, the best first."""
        return [(name, value) for name, value in self.top(len(self.classes)) if value >= threshold]

    def spells(self) -> list[tuple[float, str]]:
        """Return when the most probable class of the crops changes, in seconds, and what to."""
        best = [self.classes[index] for index in self.over_time.argmax(dim=1).tolist()]
        spells = itertools.groupby(zip(self.starts, best, strict=True), key=lambda crop: crop[1])
        return [(next(crops)[0], name) for name, crops in spells]


def predict(
    run: Path | str,
    sources: Given | Iterable[Given],
    config: CropConfig | None = None,
    *,
    splits: Sequence[str] | None = None,
    data_dir: Path | str = "data",
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Iterator[Prediction | Reject]:
    """Yield what the classifier of `run` says of each track of `sources`, or why a file cannot be used.

    The probabilities are those of `Classifier.predict`. Raises `DataError` if `run` has no classifier, if no
    file can be used, or as `Encoder.embed` does.
    """
    classifier = load_classifier(run, device)
    found = open_sources(sources, splits=splits, data_dir=Path(data_dir))
    rejects: list[Reject] = []
    extractor = listening_of(classifier, config or CropConfig(), per_crop=True).extractor()
    with evaluating(classifier), progress.task("Listening", found.samples, "tracks") as task:
        for one in extractor.extract(found.all_items(), found.samples):
            task.advance()
            if isinstance(one, Reject):
                rejects.append(one)
            yield one if isinstance(one, Reject) else _prediction(one, classifier)
    if len(rejects) == found.samples:
        raise nothing_left(rejects)


def _prediction(heard: Heard, classifier: Classifier) -> Prediction:
    return Prediction(
        key=heard.item.key,
        path=heard.item.path,
        label=heard.item.label,
        seconds=heard.seconds,
        classes=classifier.classes,
        target=classifier.target,
        probabilities=heard.outputs.mean(dim=0),
        starts=heard.starts,
        over_time=heard.outputs,
    )
