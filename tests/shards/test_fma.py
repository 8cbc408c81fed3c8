from collections import Counter
from pathlib import Path

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.shards.fma import load_fma
from tests.conftest import BROKEN, write_metadata

ROWS = [
    (2, "training", "small", "Folk"),
    (1_003, "validation", "medium", "Hip-Hop"),
    (155_004, "test", "large", ""),
]


def make_fma(root: Path, *folders: str) -> Path:
    write_metadata(root / "fma_metadata", ROWS)
    for folder in folders:
        (root / folder / "000").mkdir(parents=True)
        (root / folder / "000" / "000002.mp3").touch()
    return root


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("fma_small", ["000002"]),
        ("fma_medium", ["000002", "001003"]),
        ("fma_large", ["000002", "001003", "155004"]),
        ("fma_full", ["000002", "001003", "155004"]),
    ],
)
def test_subsets_nest(tmp_path: Path, name: str, keys: list[str]) -> None:
    corpus = load_fma(name, make_fma(tmp_path, name))
    assert corpus.name == name
    assert [track.key for track in corpus.tracks] == keys


def test_rows_become_tracks(tmp_path: Path) -> None:
    corpus = load_fma("fma_large", make_fma(tmp_path, "fma_large"))
    assert [(t.path, t.split, t.genre) for t in corpus.tracks] == [
        ("000/000002.mp3", "training", "Folk"),
        ("001/001003.mp3", "validation", "Hip-Hop"),
        ("155/155004.mp3", "test", ""),
    ]
    assert corpus.classes == ("Folk", "Hip-Hop")


def test_a_folder_that_holds_one_audio_folder_stands_for_it(fma_corpus: Path) -> None:
    corpus = load_fma(fma_corpus)
    assert corpus.folder == fma_corpus / "fma_medium"
    assert Counter(track.split for track in corpus.tracks) == {
        "training": 24 + len(BROKEN),
        "validation": 6,
        "test": 6,
    }


def test_a_folder_of_another_name_stands_for_the_files_in_it(tmp_path: Path) -> None:
    corpus = load_fma(make_fma(tmp_path, "mine") / "mine")
    assert [track.key for track in corpus.tracks] == ["000002"]


@pytest.mark.parametrize("place", [".", "fma_metadata", "elsewhere", "fma_small"])
def test_metadata_is_found_inside_the_audio_folder_or_where_it_is_said_to_be(
    tmp_path: Path, place: str
) -> None:
    audio = make_fma(tmp_path, "audio/fma_small") / "audio" / "fma_small"
    target = audio / place if place in (".", "fma_metadata") else tmp_path / place
    given = None if place in (".", "fma_metadata") else target
    target.mkdir(exist_ok=True)
    (tmp_path / "fma_metadata" / "tracks.csv").rename(target / "tracks.csv")
    assert len(load_fma(audio, metadata=given).tracks) == 1
    assert len(load_fma(audio, metadata=target / "tracks.csv").tracks) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*fma_small or fma_small: unpack"):
        load_fma("fma_small", tmp_path)


def test_two_subsets_in_one_folder_must_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds fma_medium, fma_small: give the path"):
        load_fma(make_fma(tmp_path, "fma_small", "fma_medium"))


def test_missing_metadata_is_named_with_the_places_looked_at(tmp_path: Path) -> None:
    (tmp_path / "fma_small").mkdir()
    with pytest.raises(DataError, match=r"no metadata .*fma_metadata/tracks\.csv.*--metadata"):
        load_fma("fma_small", tmp_path)
    with pytest.raises(DataError, match=r"looked for nowhere;"):
        load_fma("fma_small", tmp_path, Path("nowhere"))


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n", b"\xff\xfe\x00", b",set,set\n,split,subset\nid,,\n", b"\n\n\n\n"],
)
def test_a_file_that_is_not_fmas_metadata_is_refused(tmp_path: Path, content: bytes) -> None:
    (make_fma(tmp_path, "fma_small") / "fma_metadata" / "tracks.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"is not FMA's tracks\.csv"):
        load_fma("fma_small", tmp_path)


def test_a_split_that_fma_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fma_small").mkdir()
    write_metadata(tmp_path / "fma_metadata", [(2, "../training", "small", "Folk")])
    with pytest.raises(DataError, match=r"track 2 is in split '\.\./training'"):
        load_fma("fma_small", tmp_path)
