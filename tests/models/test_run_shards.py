import dataclasses
import json
from pathlib import Path

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.models.run_shards import shards_of_run
from siamusic_fast.shards.manifest import ShardSet, write_manifest


def noted(run: Path, data: object) -> Path:
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": str(data)}))
    return run


def test_the_shards_are_those_given_or_else_those_that_the_run_was_made_from(
    shard_set: ShardSet, segments: ShardSet, tmp_path: Path
) -> None:
    run = noted(tmp_path / "run", shard_set.folder)
    assert shards_of_run(run) == shard_set
    assert shards_of_run(run, segments) is segments
    assert shards_of_run(run, segments.folder) == segments


def test_without_labelled_shards_of_the_run_a_person_is_told_to_name_some(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    unlabelled = {
        split: tuple(dataclasses.replace(shard, labelled=False) for shard in shards)
        for split, shards in shard_set.splits.items()
    }
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for file in shard_set.folder.iterdir():
        (folder / file.name).hardlink_to(file)
    (folder / "manifest.json").unlink()
    write_manifest(dataclasses.replace(shard_set, folder=folder, splits=unlabelled))
    (tmp_path / "empty").mkdir()
    for run, words in (
        (noted(tmp_path / "a", folder), "which has no labels"),
        (noted(tmp_path / "b", tmp_path / "gone"), "was made from .*/gone, which cannot be used"),
        (tmp_path / "empty", "does not say what .* was made from"),
    ):
        with pytest.raises(DataError, match=f"{words}.* --data"):
            shards_of_run(run)
