"""Names as they are meant: in labels, folders, links and zips."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.labels import read_labels
from siamusic_fast.errors import DataError
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_rejects
from tests.audio.test_folder import touch, write_labels


def test_labels_that_look_alike_are_one_class_however_their_accents_are_written(tmp_path: Path) -> None:
    rows = ["a.wav,Caf\u00e9,", "b.wav,Cafe\u0301,", "c.wav,Cafe\u0301,Bj\u00f6rk", "d.wav,,Bjo\u0308rk"]
    found = read_labels(write_labels(tmp_path / "labels.csv", "path,label,group", *rows))
    assert {entry.label for entry in found} == {"Caf\u00e9", ""}
    assert {entry.group for entry in found} == {"Bj\u00f6rk", ""}
    touch(tmp_path / "music", "Caf\u00e9/a.wav", "Cafe\u0301/b.wav")
    assert load_folder(tmp_path / "music", labels="folders").classes == ("Caf\u00e9",)


@pytest.mark.parametrize("blank", [";", "; ", "", " ;\t"])
def test_a_blank_row_is_passed_over(tmp_path: Path, blank: str) -> None:
    lines = ["path;label", "a.wav;Rock", blank, "b.wav;Folk", blank]
    labels = write_labels(tmp_path / "labels.csv", *lines)
    assert [entry.path for entry in read_labels(labels)] == ["a.wav", "b.wav"]


def test_a_row_that_is_cut_off_is_named_with_its_line(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", "path,label,group", '"a\nb.wav",Rock,x', "c.wav,Fo")
    with pytest.raises(DataError, match=r"row 3: 2 cells, and the header has 3, in line 4 of the file"):
        read_labels(labels)


@pytest.mark.parametrize("link", ["a link to a file", "a link to a folder"])
def test_a_link_that_leads_outside_is_told_from_a_missing_file(tmp_path: Path, link: str) -> None:
    soundfile.write(tmp_path / "outside.wav", np.full(2000, 0.5), 4000)
    music = touch(tmp_path / "music", "in.wav")
    if link == "a link to a file":
        (music / "out.wav").symlink_to(tmp_path / "outside.wav")
        path = "out.wav"
    else:
        (music / "sub").symlink_to(tmp_path)
        path = "sub/outside.wav"
    soundfile.write(music / "in.wav", np.full(2000, 0.5), 4000)
    labels = write_labels(tmp_path / "labels.csv", "path,label", "in.wav,A", f"{path},A", "gone.wav,A")
    corpus = load_folder(music, labels=labels)
    packed = pack(corpus, tmp_path / "out", PackConfig(min_seconds=0.1), procs=1)
    assert {row.path: row.reason for row in read_rejects(packed.folder)} == {
        path: "outside",
        "gone.wav": "missing",
    }


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_in_a_zip_divide_folders(tmp_path: Path, system: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in (r"rock\live\a.wav", r"jazz\b.wav", *(["jazz/c.wav"] if system == 0 else [])):
            member = zipfile.ZipInfo(name)
            member.create_system = system
            file.writestr(member, b"")
    corpus = load_folder(tmp_path / "a.zip", labels="folders")
    assert corpus.classes == ("jazz", "rock")
    assert "rock/live/a.wav" in {track.path for track in corpus.tracks}


def test_a_backslash_in_a_zip_from_unix_with_folders_is_part_of_a_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(r"jazz/odd\name.wav", b"")
        file.writestr("rock/a.wav", b"")
    assert {track.path for track in load_folder(tmp_path / "a.zip").tracks} == {
        r"jazz/odd\name.wav",
        "rock/a.wav",
    }


def test_a_backslash_does_not_lead_out_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(r"..\..\a.wav", b"")
    with pytest.raises(DataError, match="leads outside of it"):
        load_folder(tmp_path / "a.zip")


def test_names_in_a_zip_are_utf_8_though_the_flag_is_missing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("Caf__/a.wav", b"")
        file.writestr("K\u00f6ln/b.wav", b"")
    path = tmp_path / "a.zip"
    path.write_bytes(path.read_bytes().replace(b"Caf__", "Caf\u00e9".encode()))
    assert load_folder(path, labels="folders").classes == ("Caf\u00e9", "K\u00f6ln")


@pytest.mark.parametrize(
    ("zip_name", "names", "classes"),
    [
        ("music", ["jazz/a.wav", "jazz/live/b.wav"], ("jazz",)),
        ("music", ["all/jazz/a.wav", "all/rock/b.wav"], ("jazz", "rock")),
        ("music", ["music/a.wav", "music/b.wav"], ()),
    ],
)
def test_the_only_folder_of_a_zip_is_a_class_if_audio_lies_in_it(
    tmp_path: Path, zip_name: str, names: list[str], classes: tuple[str, ...]
) -> None:
    with zipfile.ZipFile(tmp_path / f"{zip_name}.zip", "w") as file:
        for name in names:
            file.writestr(name, b"")
    assert load_folder(tmp_path / f"{zip_name}.zip", labels="folders").classes == classes
