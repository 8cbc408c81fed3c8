"""MagnaTagATune and MTG-Jamendo, in folders laid out like those that their authors publish."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from siamusic_fast.audio.mtg_jamendo import SUBSETS
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.cli import main
from siamusic_fast.errors import DataError
from siamusic_fast.shards.tables import read_tracks
from tests.conftest import tone

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"


def write_mp3(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = tone(0.3, 220 + 9 * number, 16_000, np.random.default_rng(number))
    soundfile.write(path, audio, 16_000, format="MP3")


def write_magnatagatune(root: Path, clips: int = 16) -> Path:
    """Write a clip in each of the folders 0 to f, and 60 tags: clip n has all from tag n on."""
    tags = [f"tag {n}" for n in range(60)]
    lines = ["\t".join(f'"{name}"' for name in ("clip_id", *tags, "mp3_path"))]
    for clip in range(clips):
        path = f"{clip:x}/an_artist_{clip // 4}-album-{clip:02d}-title-0-29.mp3"
        write_mp3(root / path, clip)
        cells = [str(clip + 2), *(str(int(n >= clip)) for n in range(60)), path]
        lines.append("\t".join(f'"{cell}"' for cell in cells))
    (root / "annotations_final.csv").write_text("\n".join(lines) + "\n")
    return root


def write_jamendo(data: Path, subset: str = "mtg_jamendo") -> None:
    splits = data / "mtg-jamendo-dataset" / "data" / "splits" / "split-0"
    splits.mkdir(parents=True, exist_ok=True)
    for split, ids in {"train": (214, 1376256), "validation": (215,), "test": (786434,)}.items():
        rows = [
            f"track_{n:07d}\tartist_{n % 10}\talbum_2\t{n % 100:02d}/{n}.mp3\t29.1\tgenre---rock"
            f"\tmood/theme---id{n}"
            for n in ids
        ]
        (splits / f"{SUBSETS[subset]}-{split}.tsv").write_text("\n".join([HEADER, *rows]) + "\n")


def shard(*words: object) -> str:
    options = ("--min-seconds", "0.1", "--procs", "1", "-q")
    result = CliRunner().invoke(main, ["shard", *map(str, words), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_magnatagatune_by_name_has_the_splits_and_the_tags_of_the_field(tmp_path: Path) -> None:
    write_magnatagatune(tmp_path / "magnatagatune")
    assert "50: tag 15 16" in shard("magnatagatune", "--data-dir", tmp_path)
    rows = list(read_tracks(tmp_path / "shards" / "magnatagatune"))
    splits = Counter(row.split for row in rows)
    assert splits == {"training": 12, "validation": 1, "test": 3}
    assert {row.path[0] for row in rows if row.split == "test"} == set("def")
    assert {row.path[0]: row.group for row in rows}.items() >= {
        "0": "an_artist_0",
        "e": "an_artist_3",
    }.items()
    assert "4: training 3, validation 1, test 1" in shard("magnatagatune", "--data-dir", tmp_path, "--force")
    tags = {row.path[0]: set(row.tags) for row in rows}
    # Tags 15 to 59 have 16 clips each, tags 14, 13, ... one clip less each.
    assert tags["0"] == {f"tag {n}" for n in range(10, 60)}
    assert tags["f"] == {f"tag {n}" for n in range(15, 60)}


def test_magnatagatune_in_other_places_and_with_other_tags(tmp_path: Path) -> None:
    root = write_magnatagatune(tmp_path / "elsewhere" / "magnatagatune")
    (root / "mp3").mkdir()
    for folder in root.glob("?"):
        folder.rename(root / "mp3" / folder.name)
    annotations = (root / "annotations_final.csv").rename(tmp_path / "annotations_final.csv")
    corpus = open_corpus(root, data_dir=tmp_path, top_tags=1000)
    assert (corpus.folder, len(corpus.tags), len(corpus.tracks)) == (root / "mp3", 60, 16)
    assert (
        open_corpus(root, metadata=annotations).tracks[:2] == open_corpus(root, data_dir=tmp_path).tracks[:2]
    )
    with pytest.raises(DataError, match=r"no annotations for .*get annotations_final\.csv from https:"):
        open_corpus(root, data_dir=root)
    annotations.write_text('"clip_id"\t"rock"\t"mp3_path"\n"2"\t"1"\t"x/a.mp3"\n')
    with pytest.raises(DataError, match=r"'x/a\.mp3', which is in none of the folders 0 to f"):
        open_corpus(root, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no folder and no zip .*magnatagatune.*unpack mp3\.zip of https:"):
        open_corpus("magnatagatune", data_dir=root)


def test_mtg_jamendo_by_name_has_the_splits_and_tags_of_its_repository(tmp_path: Path) -> None:
    write_jamendo(tmp_path)
    for number, path in enumerate(("14/214.mp3", "56/1376256.low.mp3", "15/215.low.mp3", "34/786434.mp3")):
        write_mp3(tmp_path / "mtg_jamendo" / path, number)
    assert "tags      5: genre---rock 4" in shard("mtg_jamendo", "--data-dir", tmp_path)
    rows = {
        row.path: (row.split, row.tags, row.group) for row in read_tracks(tmp_path / "shards" / "mtg_jamendo")
    }
    assert rows == {
        "14/214.mp3": ("training", ("genre---rock", "mood/theme---id214"), "artist_4"),
        "56/1376256.low.mp3": ("training", ("genre---rock", "mood/theme---id1376256"), "artist_6"),
        "15/215.low.mp3": ("validation", ("genre---rock", "mood/theme---id215"), "artist_5"),
        "34/786434.mp3": ("test", ("genre---rock", "mood/theme---id786434"), "artist_4"),
    }


@pytest.mark.parametrize("subset", SUBSETS)
def test_subsets_share_the_audio_of_the_whole_dataset(tmp_path: Path, subset: str) -> None:
    write_jamendo(tmp_path, subset)
    (tmp_path / "mtg_jamendo" / "audio").mkdir(parents=True)
    corpus = open_corpus(subset, data_dir=tmp_path, top_tags=1)
    assert (corpus.name, corpus.folder) == (subset, tmp_path / "mtg_jamendo" / "audio")
    assert (len(corpus.tracks), corpus.tags) == (4, ("genre---rock",))
    splits = tmp_path / "mtg-jamendo-dataset" / "data" / "splits" / "split-0"
    moved = splits.rename(tmp_path / "splits")
    assert len(open_corpus(tmp_path / "mtg_jamendo" / ".." / subset, metadata=moved).tracks) == 4
    with pytest.raises(DataError, match=rf"looked for {SUBSETS[subset]}-train\.tsv.*`git clone https:"):
        open_corpus(subset, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,tags"], r"-test\.tsv is no file of splits: its first line must be TRACK_ID"),
        ([HEADER, "track_1\tartist_1\talbum_1\t01/1.mp3"], r"-test\.tsv, line 2 is no track with its tags"),
        ([HEADER, "t\ta\ta\t../1.mp3\t1.0\trock"], r"-test\.tsv, line 2 is no track with its tags"),
        ([HEADER, "t\ta\ta\t14/214.mp3\t1.0\trock"], r"line 2: '14/214\.mp3' is listed twice"),
        (None, r"-test\.tsv cannot be read"),
        ("pipe", r"-test\.tsv cannot be read \(.*it is no regular file"),
    ],
)
def test_files_of_mtg_jamendo_that_are_something_else_are_named(
    tmp_path: Path, lines: list[str] | str | None, words: str
) -> None:
    write_jamendo(tmp_path)
    (tmp_path / "mtg_jamendo").mkdir()
    file = tmp_path / "mtg-jamendo-dataset" / "data" / "splits" / "split-0" / "autotagging-test.tsv"
    file.unlink()
    if lines == "pipe":
        os.mkfifo(file)
    elif lines:
        file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=words):
        open_corpus("mtg_jamendo", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no folder .*download\.py of https:"):
        open_corpus("mtg_jamendo", data_dir=tmp_path / "nowhere")
