import os
import stat
import zipfile
import zlib
from pathlib import Path

import pytest

from siamusic_fast.audio.store import Store, open_store
from siamusic_fast.errors import DataError

CONTENTS = {"a.wav": b"one", "b/c.wav": b"three", "b/é ü\n.wav": b""}
METHODS = pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)


@pytest.fixture(params=["folder", "zip", "zip of a folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same three files, laid out in different ways."""
    folder = tmp_path / "music"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if request.param == "folder":
        return open_store(folder)
    above = "inside/" if request.param == "zip of a folder" else ""
    with zipfile.ZipFile(tmp_path / "music.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in CONTENTS:
            file.write(folder / name, above + name)
    return open_store(tmp_path / "music.zip")


def make_zip(path: Path, names: list[str], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name in names:
            file.writestr(name, b"content " * 100)
    return path


def test_a_folder_and_a_zip_of_it_hold_the_same(store: Store) -> None:
    assert store.name == "music"
    assert set(store.paths()) == set(CONTENTS)
    for name, content in CONTENTS.items():
        assert store.size(name) == len(content)
        with store.open(name) as file:
            file.seek(1)
            assert file.read() == content[1:]


def test_a_zip_knows_the_checksums_of_its_files(store: Store) -> None:
    for name, content in CONTENTS.items():
        status = store.status(name)
        assert status
        assert status.crc32 == (None if Path(store.root).is_dir() else zlib.crc32(content))


def test_what_is_not_there_has_no_size_and_does_not_open(store: Store) -> None:
    for path in ("nothing.wav", "b", "a.wav/b"):
        assert store.size(path) is None
        with pytest.raises(OSError, match=r"."):
            store.open(path)


@pytest.mark.parametrize("path", ["../secret.wav", "b/../../secret.wav", "/etc/passwd", "", ".", "a\0b"])
def test_a_path_that_leads_outside_is_refused(store: Store, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.wav").write_bytes(b"secret")
    for method in (store.size, store.open):
        with pytest.raises(DataError, match="leads outside of"):
            method(path)


def test_a_link_is_followed_within_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.wav").write_bytes(b"secret")
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"one")
    (folder / "same.wav").symlink_to("a.wav")
    (folder / "out.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "loop").symlink_to(".")
    store = open_store(folder)
    assert set(store.paths()) == {"a.wav", "same.wav", "out.wav", "loop.wav"}
    assert store.size("same.wav") == store.size("loop/loop/a.wav") == 3
    for path in ("out.wav", "out/secret.wav", "loop.wav"):
        assert store.size(path) is None
        with pytest.raises(OSError, match=r"outside|symbolic links"):
            store.open(path)


def test_a_folder_that_is_itself_a_link_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.wav").write_bytes(b"one")
    (tmp_path / "link").symlink_to("music")
    assert open_store(tmp_path / "link").size("a.wav") == 3


def test_a_pipe_is_no_file_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    store = open_store(tmp_path)
    assert store.size("a.wav") is None
    with pytest.raises(OSError, match="not a regular file"):
        store.open("a.wav")


@pytest.mark.parametrize("name", ["../evil.wav", "a/../../evil.wav", "/etc/evil.wav"])
def test_a_zip_with_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", ["fine.wav", name])
    with pytest.raises(DataError, match=r"a\.zip holds a file named .*evil\.wav', which leads outside"):
        open_store(path)


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.wav")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with open_store(tmp_path / "a.zip").open("link.wav") as opened:
        assert opened.read() == b"/etc/passwd"


@METHODS
def test_the_compressions_that_python_reads_are_read(tmp_path: Path, method: int) -> None:
    with open_store(make_zip(tmp_path / "a.zip", ["a.wav"], method)).open("a.wav") as file:
        assert file.read() == b"content " * 100


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [(10, 9, "compression type 9"), (8, 1, "encrypted")],
)
def test_what_python_cannot_read_is_refused_at_once_with_the_remedy(
    tmp_path: Path, offset: int, value: int, words: str
) -> None:
    # PKWARE's APPNOTE, 4.3.12: in the central directory, flags lie at 8 and the compression method at 10.
    path = make_zip(tmp_path / "fma_small.zip", ["fma_small/000/000002.mp3"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"000002\.mp3: {words}\): unpack it with `7z x fma_small\.zip`"):
        open_store(path)


@METHODS
def test_a_member_that_is_damaged_does_not_open_and_its_neighbor_does(tmp_path: Path, method: int) -> None:
    path = make_zip(tmp_path / "a.zip", ["a.wav", "b.wav"], method)
    content = bytearray(path.read_bytes())
    for place in range(40, 50):  # after the header of 30 bytes and the name of 5
        content[place] ^= 0xFF
    path.write_bytes(content)
    store = open_store(path)
    with pytest.raises(OSError, match="damaged in the zip"):
        store.open("a.wav")
    with store.open("b.wav") as file:
        assert len(file.read()) == 800


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"RIFF", b"PK\x05\x06" + bytes(17)])
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip cannot be read as a zip"):
        open_store(tmp_path / "a.zip")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder and no zip .*nowhere"):
        open_store(tmp_path / "nowhere")


def test_what_systems_put_beside_music_is_passed_over(tmp_path: Path) -> None:
    litter = [
        ".DS_Store",
        "._a.wav",
        "b/._c.wav",
        ".Trash/d.wav",
        "b/.hidden/e.wav",
        "__MACOSX/music/._a.wav",
    ]
    music = ["a.wav", "b/c.wav", "b/not.hidden.wav"]
    for name in (*litter, *music):
        (tmp_path / "music" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "music" / name).write_bytes(b"one")
    assert sorted(open_store(tmp_path / "music").paths()) == music
    inside = [f"music/{name}" for name in music + litter if not name.startswith("__MACOSX")]
    for number, names in enumerate([music + litter, [*inside, "__MACOSX/music/._a.wav", "._music"]]):
        assert sorted(open_store(make_zip(tmp_path / f"{number}.zip", names)).paths()) == music


def test_a_zip_whose_names_begin_with_a_dot_and_a_slash_is_read(tmp_path: Path) -> None:
    assert list(open_store(make_zip(tmp_path / "a.zip", ["./a.wav"])).paths()) == ["a.wav"]
