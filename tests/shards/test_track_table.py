"""What loaders and scoring take from tracks.csv, and what is refused."""

import csv
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import ShardSet, check_tracks
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.track_table import read_track_table
from tests.shards.small import fit_tracks, pack_small


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return pack_small(tmp_path_factory.mktemp("table"))


@pytest.fixture
def small(packed: ShardSet, tmp_path: Path) -> ShardSet:
    folder = Path(shutil.copytree(packed.folder, tmp_path / "set"))
    return dataclasses.replace(packed, folder=folder)


def test_labels_lengths_and_tracks_are_those_of_the_rows_in_the_order_of_the_shards(
    shard_set: ShardSet,
) -> None:
    shards = shard_set.shards(["test", "training"])
    with (shard_set.folder / "tracks.csv").open(newline="") as file:
        all_rows = list(csv.DictReader(file))
    rows = [row for shard in shards for row in all_rows if row["shard"] == shard.file]
    table = read_track_table(shard_set, shards)
    classes = dict(enumerate(shard_set.classes)) | {-1: ""}
    assert [classes[label] for label in table.labels.tolist()] == [row["class"] for row in rows]
    assert table.samples.tolist() == [int(row["samples"]) for row in rows]
    assert table.track_ids == [row["track_id"] for row in rows]
    assert table.groups == [row["group"] for row in rows]
    assert len(set(table.groups)) == 10, "three tracks an artist, of whom one has the three without a class"
    assert -1 in table.labels
    assert table.labels.dtype == table.samples.dtype == np.int64


def test_segments_name_the_track_that_they_are_cut_from(packed: ShardSet, tmp_path: Path) -> None:
    music = packed.folder.parent / "music"
    corpus = Corpus(name="cut", folder=music, tracks=(Track("one", "a00000.wav", "test", "Rock"),))
    shard_set = pack(corpus, tmp_path / "set", PackConfig(min_seconds=0.01, max_seconds=0.04), procs=1)
    table = read_track_table(shard_set, shard_set.shards(["test"]))
    assert table.track_ids == ["one"] * 3
    assert table.samples.tolist() == [882, 882, 441]


def test_every_flipped_bit_of_the_table_is_found(small: ShardSet) -> None:
    path = small.path("tracks.csv")
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    shards = small.shards(["training"])
    for _ in range(100):
        content = bytearray(sound)
        content[rng.integers(len(sound))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"tracks\.csv is missing or damaged \(it has SHA-256 .*packing again"
        ):
            read_track_table(small, shards)
    path.write_bytes(sound)
    check_tracks(small)


def test_a_missing_table_and_a_pipe_in_its_place_are_named(small: ShardSet) -> None:
    path = small.path("tracks.csv")
    path.unlink()
    with pytest.raises(DataError, match=r"tracks\.csv is missing or damaged \(No such file"):
        check_tracks(small)
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"tracks\.csv is missing or damaged \(.*is no regular file"):
        read_track_table(small, small.shards(["training"]))


LABELLED, UNLABELLED = r"training-00000[01]\.tar", r"training-unlabelled-000000\.tar"
Edit = Callable[[list[str]], object]


def set_class(row: int, genre: str) -> Edit:
    def edit(lines: list[str]) -> None:
        cells = lines[row].split(",")
        cells[5] = genre
        lines[row] = ",".join(cells)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (set_class(1, "Polka"), f"'Polka' in {LABELLED}, which is none of the classes"),
        (set_class(1, ""), f"tracks with no class in {LABELLED}, the manifest says that all have one"),
        (
            set_class(-1, "Rock"),
            f"tracks with a class in {UNLABELLED}, the manifest says that none have one",
        ),
        (lambda lines: lines.pop(1), f"2 rows on {LABELLED}, the manifest says 3 tracks"),
        (lambda lines: lines.extend(lines[1:4]), f"its rows on {LABELLED} are not together"),
        (lambda lines: lines.__delitem__(slice(-2, None)), f"it has no row on {UNLABELLED}"),
        (
            lambda lines: lines.__setitem__(0, lines[0].replace("samples", "frames")),
            "its columns are not index,",
        ),
        (lambda lines: lines.append("1,2"), "row 8 has 2 cells, not 19"),
        (lambda lines: lines.__setitem__(1, lines[1].replace(",2205,", ",2.2,")), "invalid literal"),
    ],
)
def test_a_table_that_does_not_fit_the_manifest_is_refused_though_its_checksum_is_right(
    small: ShardSet, edit: Edit, words: str
) -> None:
    lines = small.path("tracks.csv").read_text().splitlines()
    edit(lines)
    changed = fit_tracks(small, ("\n".join(lines) + "\n").encode())
    with pytest.raises(DataError, match=rf"tracks\.csv is missing or damaged \(.*{words}"):
        read_track_table(changed, changed.shards(["training"]))
