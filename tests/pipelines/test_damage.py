"""A shard that is missing or damaged: the error names it, and the command that checks it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import ShardSet, find_shards
from tests.pipelines.both_backends import BACKENDS, labelled, two_views, whole_tracks

KINDS = [two_views, labelled, whole_tracks]


def copied(shard_set: ShardSet, folder: Path) -> ShardSet:
    """Return a copy of `shard_set`, found before it is damaged."""
    shutil.copytree(shard_set.folder, folder / "shards")
    return find_shards(folder / "shards")


def assert_named(use: Callable[[], Any], file: Path) -> None:
    """Check that `use` fails with one line that names `file` and what to do."""
    with pytest.raises(DataError) as raised:
        use()
    message = str(raised.value)
    assert str(file) in message
    assert f"`siamusic-fast verify {file.parent}`" in message
    assert "\n" not in message


def epoch(kind: Any, backend: str, shard_set: ShardSet, **options: Any) -> Callable[[], Any]:
    return lambda: list(kind(backend, shard_set, batch_size=1, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_that_is_no_longer_there_is_named(
    numbered: ShardSet, tmp_path: Path, backend: str, kind: Any
) -> None:
    shard_set = copied(numbered, tmp_path)
    missing = shard_set.path(shard_set.shards(["training"])[1].file)
    missing.unlink()
    assert_named(epoch(kind, backend, shard_set), missing)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_cut_off_after_it_was_found_is_named(
    numbered: ShardSet, tmp_path: Path, backend: str, kind: Any
) -> None:
    shard_set = copied(numbered, tmp_path)
    damaged = shard_set.path(shard_set.shards(["training"])[1].file)
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size // 2)
    assert_named(epoch(kind, backend, shard_set), damaged)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [1.0, 0.5])
@pytest.mark.parametrize(
    "text", [None, "", "v1.2 2\n", "v9 0\n", "v1.2 2\nwav 512 1000 000001.wav cls 2048 5 000001.cls\n"]
)
def test_an_index_that_is_missing_or_damaged_is_named(
    numbered: ShardSet, tmp_path: Path, backend: str, labels: float, text: str | None
) -> None:
    shard_set = copied(numbered, tmp_path)
    damaged = shard_set.path(shard_set.shards(["training"])[1].index)
    damaged.unlink()
    if text is not None:
        damaged.write_text(text)
    assert_named(epoch(labelled, backend, shard_set, labels=labels), damaged)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flac_that_cannot_be_decoded_is_named_by_its_shard(
    numbered_flac: ShardSet, tmp_path: Path, backend: str, kind: Any
) -> None:
    shard_set = copied(numbered_flac, tmp_path)
    damaged = shard_set.path(shard_set.shards(["training"])[1].file)
    content = bytearray(damaged.read_bytes())
    first = content.index(b"fLaC")
    content[first : first + 64] = bytes(64)
    damaged.write_bytes(content)
    assert_named(epoch(kind, backend, shard_set), damaged)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_without_a_tar_that_its_manifest_names_is_refused_when_it_is_found(
    numbered: ShardSet, tmp_path: Path, backend: str
) -> None:
    shard_set = copied(numbered, tmp_path)
    missing = shard_set.path(shard_set.shards(["training"])[0].file)
    missing.unlink()
    with pytest.raises(DataError, match=f"{missing} is missing"):
        two_views(backend, shard_set.folder)  # type: ignore[arg-type]
