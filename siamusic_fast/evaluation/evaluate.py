"""Evaluation: scores of a classifier on the test tracks, each track once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.audio.corpus import TAG_SEPARATOR
from siamusic_fast.config import BACKENDS
from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.checks import check_evaluation
from siamusic_fast.evaluation.features import TrackFeatures, extract_features
from siamusic_fast.evaluation.scores import Scores, scores
from siamusic_fast.evaluation.tag_scores import TagScores, tag_scores
from siamusic_fast.models.pretrained import read_classifier
from siamusic_fast.models.run_files import OF_RESULTS, new_folder, save_json
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import write_table

PREDICTIONS = "predictions.csv"
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Scores of a classifier on the test split."""

    folder: Path
    """Folder of the results."""
    data: str
    """Name of the corpus that the tracks are from."""
    pretrained_on: tuple[str, ...]
    """Splits that the encoder was pre-trained on; empty if it began with random weights."""
    target: str
    """What the classifier says of a track: `class` or `tags`."""
    scores: Scores | TagScores
    """`TagScores` if the target is tags."""


def evaluate(
    run: Path | str,
    data: ShardSet | Path | str | None = None,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    backend: str = BACKENDS[0],
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> EvaluateResult:
    """Score the classifier of `run` on every labelled track of the test split.

    Called in every process of `world`, which share the tracks; default: one process on the CPU. `run` is a
    fine-tuned pre-training run, or the folder of a classifier. `data` is a shard set, its folder, or its
    name; by default the shards that the classifier was trained on. A track's class is the one with the
    highest probability, averaged over crops that cover the track, up to 128, and over its segments if it was
    packed in several. The probabilities of tags are averaged likewise. `seed` is that of the bootstrap, which
    draws tracks of one group together; `backend` computes the spectrograms.

    Results go to `out`, which must be empty or with `force` may hold earlier results. The default is the
    folder evaluate beside the classifier, where they replace earlier results.

    Raises DataError if there is no classifier, if the shards have other classes or no test tracks, or if
    `out` is not empty.
    """
    world = world or World()
    path, shard_set = check_evaluation(Path(run), data, out, backend=backend, force=force)
    model, saved = read_classifier(path, world.device)
    classes, target = model.classes, model.target
    if shard_set.names(target) != classes:
        kind = "tags" if target == "tags" else "classes"
        raise DataError(
            f"the classifier has the {kind} {', '.join(classes)} and {shard_set.place} has "
            f"{', '.join(shard_set.names(target)) or 'none'}: use the shards it was trained on (on the "
            f"command line, without --data)."
        )
    folder = results_folder(out, path.parent / "evaluate", world, force=force)
    found = extract_features(
        model.probabilities,
        shard_set,
        "test",
        model.frontend,
        target=target,
        backend=backend,
        world=world,
        progress=progress,
    )
    result = EvaluateResult(
        folder=folder,
        data=shard_set.source,
        pretrained_on=tuple(saved["pretrained_on"]),
        target=target,
        scores=(
            tag_scores(found.features, found.tags, classes, groups=found.groups, seed=seed)
            if target == "tags"
            else scores(found.features.argmax(dim=1), found.labels, classes, groups=found.groups, seed=seed)
        ),
    )
    if world.leads:
        (_write_tags if target == "tags" else _write_classes)(folder / PREDICTIONS, found, classes)
        save_json(folder / RESULTS, as_json(result))
    return result


def _write_classes(path: Path, found: TrackFeatures, classes: tuple[str, ...]) -> None:
    """Write the class of each track, the most probable one, and its probability."""
    certainties, predictions = found.features.max(dim=1)
    columns = found.labels.tolist(), predictions.tolist(), certainties.tolist()
    rows = (
        (name, classes[label], classes[prediction], f"{certainty:.4f}")
        for name, label, prediction, certainty in zip(found.names, *columns, strict=True)
    )
    write_table(path, ("key", "truth", "prediction", "probability"), rows)


def _write_tags(path: Path, found: TrackFeatures, tags: tuple[str, ...]) -> None:
    """Write the tags of each track, and the probability of every tag."""
    rows = (
        (
            name,
            TAG_SEPARATOR.join(tag for tag, has in zip(tags, truths, strict=True) if has),
            *(f"{value:.4f}" for value in values),
        )
        for name, truths, values in zip(
            found.names, found.tags.tolist(), found.features.tolist(), strict=True
        )
    )
    write_table(path, ("key", "truth", *tags), rows)


def as_json(result: EvaluateResult) -> dict[str, object]:
    """Return `result` as plain values, without its folder."""
    return {
        "data": result.data,
        "pretrained_on": result.pretrained_on,
        "target": result.target,
        **dataclasses.asdict(result.scores),
    }


def overlap_warning(pretrained_on: Sequence[str], scored: Sequence[str] = ("test",)) -> str:
    """Return a warning if the encoder was pre-trained on splits that are `scored`; else nothing."""
    both = [split for split in scored if split in pretrained_on]
    if not both:
        return ""
    return (
        f"The encoder was pre-trained on the splits {', '.join(pretrained_on)}: if the scored tracks of "
        f"{', '.join(both)} were among them, the scores are too high."
    )


def results_folder(out: Path | str | None, default: Path, world: World, *, force: bool) -> Path:
    """Make the folder of results and return it: `out`, or `default`, where earlier results are replaced.

    Raises DataError if `out` is not empty, or, with `force`, holds something else than results.
    """

    def make() -> None:
        if out is None:
            default.mkdir(exist_ok=True)
        else:
            new_folder(Path(out), force=force, own=OF_RESULTS)

    world.once(make)
    return default if out is None else Path(out)
