import zipfile
from collections import Counter
from pathlib import Path

import pytest

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.errors import DataError
from siamusic_fast.shards.pack import PackConfig, pack
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
    assert [(t.path, t.split, t.genre, t.group) for t in corpus.tracks] == [
        ("000/000002.mp3", "training", "Folk", "0"),
        ("001/001003.mp3", "validation", "Hip-Hop", "3"),
        ("155/155004.mp3", "test", "", "516"),
    ]
    assert corpus.classes == ("Folk", "Hip-Hop")


@pytest.mark.parametrize(("columns", "group"), [("name,uid", "A namesake"), ("label,uid", "")])
def test_the_group_is_the_name_of_the_artist_where_there_is_no_number(
    tmp_path: Path, columns: str, group: str
) -> None:
    table = make_fma(tmp_path, "fma_small") / "fma_metadata" / "tracks.csv"
    table.write_text(table.read_text().replace("name,id", columns))
    assert {track.group for track in load_fma("fma_small", tmp_path).tracks} == {group}


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
    with pytest.raises(DataError, match=r"no folder .*fma_small or fma_small: unpack.*--download"):
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


def zip_folder(folder: Path, path: Path) -> Path:
    """Zip `folder` as FMA does: all files below a folder of its name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        for child in sorted(folder.rglob("*")):
            file.write(child, child.relative_to(folder.parent))
    return path


def test_zips_serve_by_name_by_path_and_by_folder(tmp_path: Path) -> None:
    root = make_fma(tmp_path / "unpacked", "fma_medium")
    expected = load_fma(root).tracks
    data = tmp_path / "data"
    data.mkdir()
    audio = zip_folder(root / "fma_medium", data / "fma_medium.zip")
    zip_folder(root / "fma_metadata", data / "fma_metadata.zip")
    for corpus in (load_fma("fma_medium", data), load_fma(audio), load_fma(data)):
        assert (corpus.name, corpus.folder, corpus.tracks) == ("fma_medium", audio, expected)


def test_an_unpacked_folder_goes_before_its_zip(tmp_path: Path) -> None:
    root = make_fma(tmp_path, "fma_small")
    (root / "fma_small.zip").write_bytes(b"a download that broke off")
    (root / "fma_metadata.zip").write_bytes(b"a download that broke off")
    assert load_fma("fma_small", root).folder == root / "fma_small"


def test_a_renamed_zip_is_known_by_the_folder_in_it(tmp_path: Path) -> None:
    root = make_fma(tmp_path, "fma_medium")
    corpus = load_fma(zip_folder(root / "fma_medium", root / "music.zip"))
    assert corpus.name == "fma_medium"
    assert len(corpus.tracks) == 2


def test_a_zip_packs_to_the_same_bytes_as_its_folder(fma_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "fma_metadata").symlink_to(fma_corpus / "fma_metadata")
    audio = zip_folder(fma_corpus / "fma_medium", tmp_path / "fma_medium.zip")
    config = PackConfig(tracks_per_shard=30)
    pack(load_fma(audio), tmp_path / "from-zip", config, procs=1)
    pack(load_fma(fma_corpus), tmp_path / "from-folder", config, procs=1)
    names = sorted(file.name for file in (tmp_path / "from-folder").iterdir())
    assert "training-000000.tar" in names
    for name in names:
        assert (tmp_path / "from-zip" / name).read_bytes() == (tmp_path / "from-folder" / name).read_bytes()


def test_a_metadata_zip_without_tracks_is_refused(tmp_path: Path) -> None:
    root = make_fma(tmp_path, "fma_small")
    with zipfile.ZipFile(root / "other.zip", "w") as file:
        file.writestr("fma_metadata/genres.csv", "")
    with pytest.raises(DataError, match=r"other\.zip holds no tracks\.csv"):
        load_fma("fma_small", root, root / "other.zip")


def test_a_damaged_metadata_zip_is_refused(tmp_path: Path) -> None:
    root = make_fma(tmp_path, "fma_small")
    path = zip_folder(root / "fma_metadata", root / "meta.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"BZh") + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged in the zip"):
        load_fma("fma_small", root, path)


@pytest.mark.parametrize("blank", ["", ",,,,,"])
def test_blank_rows_of_the_metadata_are_passed_over(tmp_path: Path, blank: str) -> None:
    table = make_fma(tmp_path, "fma_small") / "fma_metadata" / "tracks.csv"
    with table.open("a") as file:
        file.write(f"{blank}\n")
    assert len(load_fma("fma_small", tmp_path).tracks) == 1


def test_a_row_of_the_metadata_that_is_cut_off_is_named_with_its_line(tmp_path: Path) -> None:
    table = make_fma(tmp_path, "fma_small") / "fma_metadata" / "tracks.csv"
    table.write_bytes(table.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"line 9 has 7 cells, and the header has 8; .* get it again"):
        load_fma("fma_small", tmp_path)
