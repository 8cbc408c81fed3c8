"""What can be said of an evaluation or of a probe before torch is imported and tracks are read."""

from pathlib import Path

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.config import ProbeConfig
from siamusic_fast.models.run_checks import check_labels, check_run, find_classifier, recorded_target
from siamusic_fast.models.run_files import OF_RESULTS, check_free
from siamusic_fast.models.run_shards import shards_of_run
from siamusic_fast.pipelines.checks import check_backend
from siamusic_fast.shards.manifest import ShardSet


def check_evaluation(
    run: Path, data: ShardSet | Path | str | None, out: Path | str | None, *, backend: str, force: bool
) -> tuple[Path, ShardSet]:
    """Return the classifier and the shards of an evaluation; arguments and errors are those of `evaluate`."""
    check_backend(backend)
    classifier = find_classifier(run)
    shard_set = shards_of_run(classifier.parent, data)
    check_labels(shard_set, ["test"], "an evaluation", recorded_target(classifier.parent) or shard_set.target)
    _check_out(out, force)
    return classifier, shard_set


def check_probe(
    run: Path, data: ShardSet | Path | str | None, out: Path | str | None, config: ProbeConfig, *, force: bool
) -> tuple[ShardSet, list[str]]:
    """Return the shards and the splits of a probe; arguments and errors are those of `probe`.

    The splits are those that are learnt from and scored, the one that crops are retrieved from last.
    """
    check_backend(config.backend)
    check_run(run)
    shard_set = shards_of_run(run, data)
    target = config.target or shard_set.target
    labelled = target == "class"
    splits = ["training", "test"]
    if config.cv is not None:
        splits = [
            split
            for split in SPLITS
            if any(shard.labelled or not labelled for shard in shard_set.splits.get(split, ()))
        ]
    check_labels(shard_set, splits if labelled or config.cv is None else (), "a probe", target)
    for split in splits or ["training"]:
        shard_set.shards([split], labelled_only=labelled)
    _check_out(out, force)
    return shard_set, splits


def _check_out(out: Path | str | None, force: bool) -> None:
    if out is not None:
        check_free(Path(out), OF_RESULTS, force)
