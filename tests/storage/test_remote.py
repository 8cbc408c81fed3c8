"""Objects are read and written whole, and what goes wrong is one clear error."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import requests

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.storage import remote as module
from siamusic_fast.storage.remote import (
    CHUNK,
    RemoteFolder,
    StorageError,
    UnreachableError,
    is_url,
)
from tests.storage.servers import BUCKET, Relay, SilentServer, client


def random_file(path: Path, size: int) -> bytes:
    content = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("place", ["s3", "file"])
def test_a_file_of_several_chunks_comes_back_as_it_was_put(s3: str, place: str, tmp_path: Path) -> None:
    folder = RemoteFolder(f"{s3}/round/trip" if place == "s3" else f"file://{tmp_path}/trip")
    assert folder.list() == {}
    content = random_file(tmp_path / "a", 2 * CHUNK)
    folder.put(tmp_path / "a", "ö b/a.bin")
    assert {name: status.size for name, status in folder.list().items()} == {"ö b/a.bin": len(content)}
    assert folder.read("ö b/a.bin", len(content)) == content
    with pytest.raises(DataError, match="must have at most 16,777,215 bytes, and has 16,777,216"):
        folder.read("ö b/a.bin", len(content) - 1)
    stamp = folder.list()["ö b/a.bin"].stamp
    (tmp_path / "a").write_bytes(content[::-1])
    folder.put(tmp_path / "a", "ö b/a.bin")
    assert folder.list()["ö b/a.bin"].stamp != stamp
    folder.remove(["missing", "ö b/a.bin"])
    assert folder.list() == {}
    assert folder.status("ö b/a.bin") is None
    with pytest.raises(FileNotFoundError):
        folder.read("ö b/a.bin", 10)


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://bucket/a", "gs://b", "file:///a")))
    assert not any(map(is_url, ("data/shards/a", "/a", "a:b", Path("s3://bucket"))))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s5://bucket/a", "'s5://bucket/a' begins with none of s3://, gs://, az://, file://"),
        ("s3://", "names no bucket: give a URL such as s3://bucket/name"),
        ("gs://bucket/a", "gcsfs is not installed: run `pip install gcsfs`"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RemoteFolder(url)


def test_without_s3fs_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(module, "_file_system", missing)
    with pytest.raises(ConfigError, match=r"s3fs is not installed: run `pip install 'siamusic-fast\[s3\]'`"):
        RemoteFolder("s3://bucket/a")


def test_a_missing_bucket_is_named(s3: str, tmp_path: Path) -> None:
    random_file(tmp_path / "a", 10)
    folder = RemoteFolder("s3://nowhere-at-all/shards")
    for use in (folder.list, lambda: folder.put(tmp_path / "a", "a")):
        with pytest.raises(StorageError, match="there is no bucket 'nowhere-at-all' for s3://nowhere-at-all"):
            use()
    with pytest.raises(StorageError, match="there is no bucket 'nowhere-at-all'"):
        find_shards("s3://nowhere-at-all/shards")


def test_missing_and_wrong_credentials_are_told_apart_from_missing_data(
    s3: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.delenv("AWS_ACCESS_KEY_ID")
        patched.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patched.setenv("AWS_CONFIG_FILE", "/dev/null")
        with pytest.raises(
            StorageError, match=r"Unable to locate credentials\): set AWS_PROFILE, or AWS_ACC"
        ):
            find_shards(f"{s3}/shards")
    requests.post(f"{server}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on moto checks them
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        with pytest.raises(StorageError, match=f"{s3}/shards/manifest.json does not let us in .*Forbidden"):
            find_shards(f"{s3}/shards")
        with pytest.raises(StorageError, match=f"{s3}/music does not let us in .* does not exist in our rec"):
            RemoteFolder(f"{s3}/music").list()
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data=b"1000000000", timeout=10)


def test_an_endpoint_that_does_not_answer_is_given_up(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        UnreachableError, match=f"{s3}/shards cannot be reached .*127.0.0.1:9.*: check the net"
    ):
        RemoteFolder(f"{s3}/shards").list()


def test_a_server_that_is_silent_is_asked_twice(
    s3: str, silent: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._OPTIONS["s3"]["config_kwargs"], "read_timeout", 0.1)
    with pytest.raises(UnreachableError, match="Timeout"):
        next(RemoteFolder(f"{s3}/shards").chunks("a", 10))
    assert len(silent.taken) == 2


def test_a_full_disk_behind_a_url_is_not_taken_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_file(tmp_path / "a", 10)
    folder, tries = RemoteFolder(f"file://{tmp_path}/full"), []

    def full(*names: str) -> None:
        tries.append(names)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder._fs, "put_file", full)
    with pytest.raises(StorageError, match=r"full/b cannot be read or written \(No space left") as caught:
        folder.put(tmp_path / "a", "b")
    assert not isinstance(caught.value, UnreachableError)
    assert len(tries) == 1


def test_a_connection_cut_in_the_middle_is_asked_again(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random_file(tmp_path / "a", 3_000_000)
    client(server).put_object(Bucket=BUCKET, Key="cut/a", Body=content)
    relay = Relay(server, cuts=2, after=1_000_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.address)
    try:
        assert RemoteFolder(f"{s3}/cut").read("a", len(content)) == content
        assert relay.cuts_left == 0
        assert relay.passed > len(content) + 2_000_000  # what was cut was sent again
    finally:
        relay.close()


def test_an_upload_that_something_else_overwrites_is_noticed(
    s3: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemoteFolder(f"{s3}/race")
    random_file(tmp_path / "a", 100)
    upload = folder._fs.put_file

    def overwritten(*words: str) -> None:
        upload(*words)
        client(server).put_object(Bucket=BUCKET, Key="race/a", Body=bytes(100))

    monkeypatch.setattr(folder._fs, "put_file", overwritten)
    with pytest.raises(StorageError, match=f"{s3}/race/a is not what was uploaded"):
        folder.put(tmp_path / "a", "a")


def test_threads_share_a_folder(s3: str, server: str) -> None:
    for number in range(8):
        client(server).put_object(Bucket=BUCKET, Key=f"threads/{number}", Body=bytes([number]) * 1000)
    folder, found = RemoteFolder(f"{s3}/threads"), {}

    def read(number: int) -> None:
        found[number] = folder.read(str(number), 1000)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: bytes([number]) * 1000 for number in range(8)}
