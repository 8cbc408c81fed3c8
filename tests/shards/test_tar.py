"""Tars against those of `tarfile`."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from siamusic_fast.shards.tar import Member, TarError, TarReader, TarWriter

FILES = {
    "a.wav": b"x" * 1000,
    f"{'long' * 20}/{'name' * 20}.cls": b"00001",
    "empty.json": b"",
    "é.wav": b"y" * 512,
}


def write(path: Path, files: dict[str, bytes]) -> tuple[list[Member], str]:
    with path.open("wb") as file:
        tar = TarWriter(file)
        members = [tar.add(name, content[:3], content[3:]) for name, content in files.items()]
        return members, tar.finish()


def test_bytes_and_offsets_are_those_of_tarfile(tmp_path: Path) -> None:
    members, sha256 = write(tmp_path / "ours.tar", FILES)
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = (tmp_path / "ours.tar").read_bytes()
    assert content == (tmp_path / "theirs.tar").read_bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    with tarfile.open(tmp_path / "theirs.tar") as tar:
        assert members == [Member(info.name, info.offset_data, info.size) for info in tar]


def test_what_is_written_is_read_back_in_one_pass(tmp_path: Path) -> None:
    members, sha256 = write(tmp_path / "a.tar", FILES)
    read: list[int] = []
    with (tmp_path / "a.tar").open("rb") as file:
        tar = TarReader(file, read.append)
        for member, content in zip(members, FILES.values(), strict=True):
            assert tar.next_member() == member
            assert tar.read(member.size) == content
            tar.skip_to_block(member.offset + member.size)
        assert tar.next_member() is None
        assert tar.finish() == (sha256, True)
    assert sum(read) == (tmp_path / "a.tar").stat().st_size


def test_a_header_that_states_too_much_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path, {"a.json": b"{}"})
    header = tarfile.TarInfo("a.json")
    header.size = 8 * 2**30 - 1
    with path.open("r+b") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
    with path.open("rb") as file:
        tar = TarReader(file, lambda size: None)
        assert tar.next_member() == Member("a.json", 512, 8 * 2**30 - 1)
        assert len(tar.read(8 * 2**30 - 1)) == path.stat().st_size - 512
        with pytest.raises(TarError, match="without the end of a tar"):
            tar.next_member()
