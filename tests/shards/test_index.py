"""Damage to an index or a tar is found when the index is read, and never read as audio."""

import dataclasses
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.shards.index import read_index, sample_name
from siamusic_fast.shards.manifest import Shard, ShardSet
from tests.shards.small import fit_index, pack_small

CLS_HEADER_AT = 512 + 4608
"""Where the tar header of the first label is: 44 + 2 * 2205 = 4454 bytes of WAV fill 9 blocks of 512."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return pack_small(tmp_path_factory.mktemp("index"))


@pytest.fixture
def small(packed: ShardSet, tmp_path: Path) -> ShardSet:
    folder = Path(shutil.copytree(packed.folder, tmp_path / "set"))
    return dataclasses.replace(packed, folder=folder)


@pytest.fixture
def shard(small: ShardSet) -> Shard:
    return small.shards(["training"])[0]


def overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def refused(shard_set: ShardSet, shard: Shard, name: str, words: str) -> bool:
    """Whether reading the index is an error that names the file, what is wrong and the remedy."""
    with pytest.raises(DataError) as caught:
        read_index(shard_set, shard)
    pattern = rf"{re.escape(str(shard_set.path(name)))} is missing or damaged \(.*{words}.*\): "
    return bool(
        re.match(rf"{pattern}`siamusic-fast verify \S+` says .*packing again mends it\.", str(caught.value))
    )


@pytest.mark.parametrize("codec", ["wav", "flac", "ogg"])
def test_files_are_where_tarfile_finds_them(tmp_path: Path, codec: str) -> None:
    shard_set = pack_small(tmp_path, codec)
    for shard in shard_set.shards(["training"]):
        index = read_index(shard_set, shard)
        with tarfile.open(shard_set.path(shard.file)) as tar:
            audio = [member for member in tar if member.name.endswith(codec)]
            labels = [member for member in tar if member.name.endswith("cls")]
        assert index.audio_offset.tolist() == [member.offset_data for member in audio]
        assert index.audio_size.tolist() == [member.size for member in audio]
        assert index.cls_offset.tolist() == [member.offset_data for member in labels]
        assert index.audio_offset.dtype == index.audio_size.dtype == index.cls_offset.dtype == np.int64
        names = [sample_name(shard_set, shard, row) for row in range(shard.tracks)]
        assert names == [member.name.removesuffix(f".{codec}") for member in audio]


def test_every_flipped_bit_of_an_index_is_found(small: ShardSet, shard: Shard) -> None:
    path = small.path(shard.index)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(sound)
        content[rng.integers(len(sound))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        assert refused(small, shard, shard.index, "it has SHA-256")
    path.write_bytes(sound)
    read_index(small, shard)


def test_every_changed_digit_is_found_even_if_the_manifest_was_made_to_fit_it(
    small: ShardSet, shard: Shard
) -> None:
    sound = small.path(shard.index).read_bytes()
    first = sound.index(b"\n") + 1
    numbers = [match.span(1) for match in re.finditer(rb"(?:wav|cls|json) (\d+ \d+) ", sound[first:])]
    assert len(numbers) == 9
    for start, end in (numbers[place] for place in (0, 1, 6, 7)):  # audio and label of the first and the last
        for place in range(first + start, first + end):
            if sound[place : place + 1] == b" ":
                continue
            digit = b"%d" % ((int(sound[place : place + 1]) + 1) % 10)
            changed = fit_index(small, shard, sound[:place] + digit + sound[place + 1 :])
            with pytest.raises(DataError, match="is missing or damaged"):
                read_index(small, changed)


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_a_truncated_index_is_found(small: ShardSet, shard: Shard, cut: int) -> None:
    content = small.path(shard.index).read_bytes()
    small.path(shard.index).write_bytes(content[:cut])
    assert refused(small, shard, shard.index, "it has SHA-256")


def test_swapped_indices_are_found(small: ShardSet, shard: Shard) -> None:
    other = small.shards(["training"])[1]
    one, two = small.path(shard.index), small.path(other.index)
    assert one.stat().st_size == two.stat().st_size
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    for swapped in (shard, other):
        assert refused(small, swapped, swapped.index, "it has SHA-256")


def test_the_index_of_another_tar_of_equal_size_does_not_fit_even_with_a_manifest_to_match(
    small: ShardSet, shard: Shard
) -> None:
    other = small.shards(["training"])[1]
    assert other.bytes == shard.bytes
    changed = fit_index(small, shard, small.path(other.index).read_bytes())
    assert refused(
        small, changed, shard.file, r"it has a\d+\.wav of 4454 bytes at byte 512, its index says a"
    )


def test_a_foreign_tar_of_equal_size_is_found(small: ShardSet, shard: Shard, tmp_path: Path) -> None:
    foreign = pack_small(tmp_path / "foreign", prefix="b")
    tar = foreign.path(shard.file)
    assert tar.stat().st_size == shard.bytes
    shutil.copy(tar, small.path(shard.file))
    assert refused(small, shard, shard.file, r"it has b\d+\.wav of 4454 bytes at byte 512, its index says a")


def change(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def changed(text: bytes) -> bytes:
        assert old in text
        return text.replace(old, new, 1)

    return changed


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change(b"v1.2 3", b"v1.2 2"), "does not list 3 tracks"),
        (change(b"v1.2 3", b"v1.1 3"), "does not list 3 tracks"),
        (lambda text: text[: text.rindex(b"wav")], "does not list 3 tracks"),
        (lambda text: text + b"wav 1 2 x", "does not list 3 tracks"),
        (lambda text: b"", "does not list 3 tracks"),
        (change(b"wav 512", b"ogg 512"), "does not list wav, cls and json"),
        (change(b" 4454 ", b" x "), "invalid literal"),
        (change(b" 4454 ", b" -4454 "), "a size that it cannot have"),
        (change(b" 4454 ", b" 44540000 "), "a size that it cannot have"),
        (change(b" 4454 ", b" 9" + 30 * b"0" + b" "), "too large"),
        (change(b" 5 ", b" 4 "), "a size that it cannot have"),
        (change(b" 512 ", b" 514 "), "do not follow each other"),
        (change(b" 4454 ", b" 5000 "), "do not follow each other"),
    ],
)
def test_an_index_made_to_fit_a_wrong_manifest_is_found(
    small: ShardSet, shard: Shard, edit: Callable[[bytes], bytes], words: str
) -> None:
    changed = fit_index(small, shard, edit(small.path(shard.index).read_bytes()))
    assert refused(small, changed, shard.index, words)


def test_an_index_that_goes_on_beyond_its_tar_is_found(small: ShardSet, shard: Shard) -> None:
    assert refused(small, dataclasses.replace(shard, bytes=6_000), shard.index, "within the 6000 bytes")


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        (0, b"x", "no tar header at byte 0, or a damaged one"),
        (512 + 24, b"\x44\xac", r"a\d+\.wav is not 16-bit mono audio at 22050 Hz"),
        (512 + 40, b"\x00", r"a\d+\.wav is not 16-bit mono audio"),
        (CLS_HEADER_AT + 130, b"7", f"no tar header at byte {CLS_HEADER_AT}, or a damaged one"),
    ],
)
def test_changed_headers_of_the_first_sample_are_found(
    small: ShardSet, shard: Shard, place: int, content: bytes, words: str
) -> None:
    overwrite(small.path(shard.file), place, content)
    assert refused(small, shard, shard.file, words)


def test_changed_headers_of_the_last_sample_are_found(small: ShardSet, shard: Shard) -> None:
    index = read_index(small, shard)
    overwrite(small.path(shard.file), int(index.audio_offset[-1]), b"RIFX")
    assert refused(small, shard, shard.file, "is not 16-bit mono audio at 22050 Hz")


def test_a_tar_that_was_cut_or_removed_since_is_named(small: ShardSet, shard: Shard) -> None:
    path = small.path(shard.file)
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(
        small, shard, shard.file, f"it has {shard.bytes - 1} bytes, the manifest says {shard.bytes}"
    )
    path.unlink()
    assert refused(small, shard, shard.file, "No such file")
    small.path(shard.index).unlink()
    assert refused(small, shard, shard.index, "No such file")


@pytest.mark.parametrize("kind", ["index", "file"])
def test_a_pipe_or_a_folder_is_not_waited_for(small: ShardSet, shard: Shard, kind: str) -> None:
    name = getattr(shard, kind)
    small.path(name).unlink()
    os.mkfifo(small.path(name))
    assert refused(small, shard, name, "is no regular file")
    small.path(name).unlink()
    small.path(name).mkdir()
    assert refused(small, shard, name, "Is a directory")


def test_the_name_of_a_sample_is_not_taken_from_a_damaged_index(small: ShardSet, shard: Shard) -> None:
    small.path(shard.index).write_bytes(b"v1.2 0\n")
    with pytest.raises(DataError, match=r"\.idx is missing or damaged"):
        sample_name(small, shard, 0)
