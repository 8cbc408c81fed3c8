import dataclasses
import hashlib
import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.files import MANIFEST_LIMIT
from siamusic_fast.shards.manifest import DamageError, ShardSet, find_shards, read_manifest


@pytest.fixture
def copied(shard_set: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_set.folder, tmp_path / "shards" / "mine"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_manifest_comes_back_as_it_was_written(shard_set: ShardSet) -> None:
    assert read_manifest(shard_set.folder) == shard_set


def test_sizes_and_checksums_are_those_of_the_files(shard_set: ShardSet) -> None:
    for shard in shard_set.shards(["training", "validation", "test"]):
        content = shard_set.path(shard.file).read_bytes()
        assert len(content) == shard.bytes
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert hashlib.sha256(shard_set.path(shard.index).read_bytes()).hexdigest() == shard.index_sha256


def test_shards_are_found_by_path_and_by_name(copied: Path, tmp_path: Path) -> None:
    assert find_shards(copied).folder == copied
    assert find_shards("mine", tmp_path).folder == copied
    with pytest.raises(DataError, match=r"no shards 'other'.*there are mine\.$"):
        find_shards("other", tmp_path)


def test_splits_are_chosen_and_unlabelled_tracks_left_out(shard_set: ShardSet) -> None:
    assert shard_set.tracks(["training"]) == 24
    assert shard_set.tracks(["training"], labelled_only=True) == 22
    assert shard_set.tracks(["test", "validation"]) == 12
    assert all(shard.labelled for shard in shard_set.shards(["training", "test"], labelled_only=True))


def test_an_unknown_split_is_answered_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(
        DataError, match="no tracks in split 'train': its splits are training, validation, test"
    ):
        shard_set.shards(["train"])
    shards = tuple(shard for shard in shard_set.shards(["test"]) if not shard.labelled)
    unlabelled = dataclasses.replace(shard_set, splits={"test": shards})
    with pytest.raises(DataError, match="no labelled tracks in split 'test'"):
        unlabelled.shards(["test"], labelled_only=True)


def test_a_folder_without_manifest_is_no_shard_set(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no shard set: it has no manifest\.json"):
            read_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "{",
        "[" * 100_000,
        '{"format_version": 5}',
        '{"format_version": 5, "splits": 3, "classes": []}',
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"is damaged .*--force"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("version", [4, 6])
def test_another_format_is_refused(copied: Path, version: int) -> None:
    edit(copied, lambda values: values.update(format_version=version))
    with pytest.raises(DataError, match=f"format version {version}, this version of siamusic-fast reads 5"):
        read_manifest(copied)


@pytest.mark.parametrize("name", ["../mine/test-000000.tar", "/etc/passwd", "..", ".", ""])
@pytest.mark.parametrize("field", ["file", "index"])
def test_a_file_name_that_leaves_the_folder_is_refused(copied: Path, field: str, name: object) -> None:
    edit(copied, lambda values: values["splits"]["test"][0].update({field: name}))
    with pytest.raises(DataError, match="not a plain file name"):
        read_manifest(copied)


@pytest.mark.parametrize("name", ["test-000000.tar", "test-000000.idx", "tracks.csv", "rejected.csv"])
@pytest.mark.parametrize(
    ("put", "words"),
    [
        (os.mkfifo, "it is no regular file"),
        (Path.mkdir, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a link, which may lead anywhere"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    copied: Path, name: str, put: Callable[[Path], object], words: str
) -> None:
    (copied / name).unlink()
    put(copied / name)
    with pytest.raises(DataError, match=rf"{re.escape(name)} is missing or damaged \({words}"):
        read_manifest(copied)


def test_a_manifest_that_is_no_file_or_too_large_is_refused_at_once(copied: Path) -> None:
    manifest = copied / "manifest.json"
    os.truncate(manifest, MANIFEST_LIMIT + 1)
    with pytest.raises(DataError, match=r"it has 268,435,457 bytes, such a file has at most 268,435,456"):
        find_shards(copied)
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(DataError, match=r"is damaged .*it is no regular file"):
        find_shards(copied)


def test_missing_and_cut_files_are_named(copied: Path) -> None:
    shard = copied / "test-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(
        DataError, match=rf"test-000000\.tar is missing or damaged \(it has {len(content) - 1} bytes"
    ):
        read_manifest(copied)
    shard.unlink()
    with pytest.raises(DataError, match=r"test-000000\.tar is missing or damaged \(No such file"):
        read_manifest(copied)
    shard.write_bytes(content)
    (copied / "test-000000.idx").unlink()
    with pytest.raises(DataError, match=r"test-000000\.idx is missing or damaged \(No such file"):
        read_manifest(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(rejected=[]), r"rejected is \[\]"),
        (lambda v: v.update(sample_rate="8000"), "sample_rate is '8000'"),
        (lambda v: v.update(classes="abc"), "classes is 'abc'"),
        (lambda v: v.update(classes=[1]), r"classes\[0\] is 1"),
        (lambda v: v.update(rejected={"empty": "1"}), r"rejected\['empty'\] is '1'"),
        (lambda v: v.update(splits={"test": {}}), r"splits\['test'\] is \{\}"),
        (lambda v: v["splits"]["test"][0].update(bytes="123"), "bytes is '123'"),
        (lambda v: v["splits"]["test"][0].update(labelled=1), "labelled is 1"),
        (lambda v: v["splits"]["test"][0].update(file=7), "file is 7"),
        (lambda v: v["splits"]["test"][0].update(index=7), "index is 7"),
        (lambda v: v["splits"]["test"].append(7), "TypeError"),
        (lambda v: v["splits"]["test"][0].pop("index_sha256"), "index_sha256"),
        (lambda v: v["splits"]["test"][0].update(index_sha256=7), "index_sha256 is 7"),
        (lambda v: v["splits"]["test"][0].update(index_sha256="ab"), "index_sha256 is 'ab', not 64"),
        (lambda v: v["splits"]["test"][0].update(sha256="g" * 64), "sha256 is 'g+', not 64"),
        (lambda v: v.pop("tables"), "tables"),
        (lambda v: v["tables"].pop("tracks.csv"), r"tracks\.csv"),
        (lambda v: v["tables"].update({"tracks.csv": ""}), r"the SHA-256 of tracks\.csv is '', not 64"),
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v["splits"]["test"].append(v["splits"]["test"][0]), r"names 'test-000000\.tar' 2 times"),
        (lambda v: v.update(sample_rate=10**12), r"sample_rate = .* must lie between 1 and 1000000"),
        (lambda v: v.update(sample_rate=True), "sample_rate is True"),
        (lambda v: v.update(codec="mp3"), "codec = 'mp3' is unknown: choose one of wav, flac, ogg"),
        (lambda v: v.update(seed=-1), "seed = -1 must lie between"),
        (lambda v: v.update(min_seconds=math.nan), "min_seconds = nan must be"),
        (lambda v: v.update(max_seconds=0), "max_seconds = 0 must be"),
        (lambda v: v.update(rejected={"empty": -1}), r"rejected\['empty'\] = -1 must lie"),
        (lambda v: v.update(classes=["Rock"] * 3), "the class 'Rock' 3 times"),
        (lambda v: v.update(classes=[""]), "the class '' 1 times"),
        (lambda v: v["splits"].update(exam=v["splits"].pop("test")), "the split 'exam' of"),
        (lambda v: v["splits"].update(test=[]), "the split 'test' of 0 shards"),
        (lambda v: v["splits"]["test"][0].update(tracks=-5), r"splits\['test'\]\[0\].tracks = -5 must lie"),
        (lambda v: v["splits"]["test"][0].update(tracks=10**12), r"cannot hold 1000000000000 tracks"),
        (
            lambda v: v["splits"]["test"][0].update(shortest=10**9),
            "its shortest track has 1000000000",
        ),
        (lambda v: v.update(seed=1), "was changed: its own SHA-256 is"),
    ],
)
def test_fields_of_another_type_and_repeated_files_are_damage(
    copied: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(copied, change)
    with pytest.raises(DataError, match=rf"is damaged .*{words}"):
        read_manifest(copied)


def test_damage_is_the_same_error_in_another_process(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(DamageError(tmp_path / "a.tar", "it is short")))
    assert str(error).startswith(
        f"{tmp_path}/a.tar is missing or damaged (it is short): `siamusic-fast verify"
    )
    assert error.reason == "it is short"


def test_checksums_of_the_tables_are_those_of_the_files(shard_set: ShardSet) -> None:
    assert shard_set.tables == {
        name: hashlib.sha256(shard_set.path(name).read_bytes()).hexdigest()
        for name in ("tracks.csv", "rejected.csv")
    }
