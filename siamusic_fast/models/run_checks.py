"""Checks of the folder of a run: told before torch is imported and before a track is read."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.files import SETTINGS_LIMIT, read_regular
from siamusic_fast.models.run_files import BEST, CLASSIFIER, CONFIG, Checkpoints
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import MANIFEST, ShardSet


def check_run(run: Path) -> None:
    """Raise DataError unless `run` is the folder of a pre-training run that was saved."""
    if Checkpoints(run).exist() or (run / BEST).is_file():
        return
    if (run / CLASSIFIER).is_file() and (origin := _recorded(run, "run")):
        raise DataError(f"{run} is a classifier, not a pre-training run: give {origin}, its own run.")
    raise no_run(run)


def no_run(run: Path) -> DataError:
    """Return the error that says what `run` is instead of a run, and what to give or to do."""
    if (run / MANIFEST).is_file():
        command = shlex.join(("siamusic-fast", "pretrain", "--data", str(run)))
        return DataError(f"{run} is a shard set, not a run: `{command}` makes a run from it.")
    if not run.exists():
        return DataError(f"no run {str(run)!r}: {_where_runs_are(run.parent)}.")
    if _recorded(run, "backbone"):
        return DataError(
            f"{run} was stopped before its first checkpoint: pre-train again (on the command line with "
            f"--out {shlex.quote(str(run))} --force)."
        )
    return DataError(f"{run} is no run, as it holds no checkpoint.pt: {_where_runs_are(run)}.")


def find_classifier(run: Path) -> Path:
    """Return the classifier in `run` or in its folder finetune. Raises DataError if there is none."""
    for path in (run / CLASSIFIER, run / "finetune" / CLASSIFIER):
        if path.is_file():
            return path
    check_run(run)
    command = shlex.join(("siamusic-fast", "finetune", str(run)))
    raise DataError(f"{run} has no classifier: `{command}` trains one.")


def check_labels(shard_set: ShardSet, splits: Sequence[str], what: str, target: str = "class") -> None:
    """Raise DataError unless `shard_set` has what `what` needs in all `splits`: two classes, or tags.

    Of the tags, at least one must be that of some tracks of a split and not of others.
    """
    if target == "tags":
        _check_tags(shard_set, splits, what)
        return
    if len(shard_set.classes) < 2:
        found = ", ".join(shard_set.classes) or "none"
        raise DataError(
            f"{shard_set.place} has too few classes ({found}): {what} needs at least 2; name other shards "
            f"with data (on the command line --data), or pack the audio again with `siamusic-fast shard "
            f"SOURCE --labels FILE`."
        )
    for split in splits:
        shard_set.shards([split], labelled_only=True)


def _check_tags(shard_set: ShardSet, splits: Sequence[str], what: str) -> None:
    if not shard_set.tags:
        raise DataError(
            f"{shard_set.place} has no tags, and {what} needs some: name other shards with data (on the "
            f"command line --data), or pack the audio again with `siamusic-fast shard SOURCE --labels FILE "
            f"--tags`."
        )
    for split in splits:
        tracks = open_tracks(shard_set, [split], target="tags")
        assert tracks.tags is not None
        counts = tracks.tags.sum(axis=0, dtype=int)
        if not ((counts > 0) & (counts < len(tracks))).any():
            raise DataError(
                f"no tag tells tracks of the split {split!r} of {shard_set.place} apart: each of "
                f"{len(counts)} is that of all of its {len(tracks)} tagged tracks or of none; pack the audio "
                f"again with other tags or splits."
            )


def _where_runs_are(folder: Path) -> str:
    """Name some runs in `folder`, or say how one is made."""
    runs = sorted({str(path.parent) for path in folder.glob("*/checkpoint.pt")})
    if runs:
        more = ", ..." if len(runs) > 3 else ""
        return f"there are {', '.join(runs[:3])}{more}"
    return "give the folder that `siamusic-fast pretrain` made"


def recorded_target(folder: Path) -> str:
    """Return the target of the classifier in `folder`, class or tags, as its config.json says; or nothing."""
    return _recorded(folder, "target")


def _recorded(run: Path, name: str) -> str:
    """Return what config.json in `run` says under `name`; nothing if it says nothing."""
    try:
        return str(json.loads(read_regular(run / CONFIG, SETTINGS_LIMIT))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
