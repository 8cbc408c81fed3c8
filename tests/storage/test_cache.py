"""The cache gives every shard as the manifest states it, and never holds more than its size."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import open_regular
from siamusic_fast.storage import cache as module
from siamusic_fast.storage.cache import (
    CACHE_VARIABLE,
    SIZE_VARIABLE,
    Fetching,
    FetchStoppedError,
    ShardCache,
    parse_size,
)
from siamusic_fast.storage.remote import RemoteFolder, UnreachableError
from tests.faults.disks import small_disk
from tests.storage.servers import SilentServer

SIZE = 100_000


@pytest.fixture
def objects(tmp_path: Path) -> dict[str, str]:
    """Five objects of `SIZE` bytes in the folder `stored`: the SHA-256 of each by its name."""
    (tmp_path / "stored").mkdir()
    found = {}
    for number in range(5):
        content = np.random.default_rng(number).bytes(SIZE)
        (tmp_path / "stored" / f"{number}.tar").write_bytes(content)
        found[f"{number}.tar"] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture
def remote(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder(f"file://{tmp_path}/stored")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """A cache with room for three of the objects."""
    return ShardCache(folder=tmp_path / "cache", size=3 * SIZE + 1)


def here(cache: ShardCache) -> set[str]:
    return {path.name for path in (cache.folder / "tars").iterdir()} - {"lock"}


def use(cache: ShardCache, remote: RemoteFolder, name: str, sha256: str) -> None:
    with cache.open(remote, name, SIZE, sha256) as file:
        assert hashlib.sha256(file.readall()).hexdigest() == sha256


def test_a_shard_is_fetched_once_and_the_least_recently_used_make_room(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    original = RemoteFolder.chunks

    def counted(self: RemoteFolder, name: str, size: int) -> object:
        fetched.append(name)
        return original(self, name, size)

    monkeypatch.setattr(RemoteFolder, "chunks", counted)
    for name in ("0.tar", "1.tar", "2.tar", "0.tar", "3.tar", "0.tar", "1.tar"):
        use(cache, remote, name, objects[name])
        time.sleep(0.01)  # times of use differ
    assert fetched == ["0.tar", "1.tar", "2.tar", "3.tar", "1.tar"]
    assert here(cache) == {f"{objects[name]}.tar" for name in ("0.tar", "1.tar", "3.tar")}


def test_a_file_that_is_read_survives_being_removed_and_is_fetched_again_when_it_is_opened(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str]
) -> None:
    with cache.open(remote, "0.tar", SIZE, objects["0.tar"]) as held:
        for name in ("1.tar", "2.tar", "3.tar"):
            use(cache, remote, name, objects[name])
        assert f"{objects['0.tar']}.tar" not in here(cache)
        assert hashlib.sha256(held.readall()).hexdigest() == objects["0.tar"]
        use(cache, remote, "0.tar", objects["0.tar"])


def test_equal_names_of_other_sets_are_not_mixed_up(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], tmp_path: Path
) -> None:
    use(cache, remote, "0.tar", objects["0.tar"])
    (tmp_path / "other").mkdir()
    content = bytes(SIZE)
    (tmp_path / "other" / "0.tar").write_bytes(content)
    other = RemoteFolder(f"file://{tmp_path}/other")
    use(cache, other, "0.tar", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing"])
def test_a_corrupted_object_is_an_error_and_never_gets_a_name(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "stored" / "0.tar"
    content = bytearray(path.read_bytes())
    content[SIZE // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:1000])
    words = "is not there" if damage == "missing" else f"is damaged or was changed .* {objects['0.tar']}"
    with pytest.raises(DataError, match=f"{remote.url}/0.tar {words}"):
        cache.open(remote, "0.tar", SIZE, objects["0.tar"])
    assert here(cache) == set()


def test_a_file_in_the_cache_of_another_size_is_fetched_again(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str]
) -> None:
    use(cache, remote, "0.tar", objects["0.tar"])
    cache.path(objects["0.tar"]).write_bytes(b"cut off")
    use(cache, remote, "0.tar", objects["0.tar"])


def test_a_full_disk_costs_what_is_oldest_and_only_then_is_an_error(
    remote: RemoteFolder, objects: dict[str, str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 250_000):
        cache = ShardCache(folder=tmp_path / "disk" / "cache", size=10**9)
        for name, sha256 in objects.items():
            use(cache, remote, name, sha256)
        assert len(here(cache)) == 2
        (tmp_path / "stored" / "large.tar").write_bytes(bytes(10**6))
        sha256 = hashlib.sha256(bytes(10**6)).hexdigest()
        with pytest.raises(
            DataError, match=r"cannot be used .No space left on device.: make room or mend that"
        ):
            cache.open(remote, "large.tar", 10**6, sha256)
        use(cache, remote, "0.tar", objects["0.tar"])


def test_without_room_for_a_file_the_error_says_what_to_do(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left on device.*--cache, --cache-size"):
        cache.open(remote, "0.tar", SIZE, objects["0.tar"])
    assert here(cache) == set()


def test_nothing_that_answers_is_asked_again_for_a_while(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITS", (0.0, 0.0))
    original, failures = RemoteFolder.chunks, iter((True, True, False))

    def failing(self: RemoteFolder, name: str, size: int) -> object:
        if next(failures, True):
            raise UnreachableError(f"{self.url} cannot be reached.")
        return original(self, name, size)

    monkeypatch.setattr(RemoteFolder, "chunks", failing)
    use(cache, remote, "0.tar", objects["0.tar"])
    with pytest.raises(UnreachableError):
        cache.open(remote, "1.tar", SIZE, objects["1.tar"])


def test_threads_that_want_one_shard_fetch_it_once(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    original = RemoteFolder.chunks

    def slow(self: RemoteFolder, name: str, size: int) -> object:
        fetched.append(name)
        time.sleep(0.1)
        return original(self, name, size)

    monkeypatch.setattr(RemoteFolder, "chunks", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: use(cache, remote, "0.tar", objects["0.tar"]), range(4)))
    assert fetched == ["0.tar"]


def test_a_shard_that_comes_between_looking_and_fetching_is_not_fetched_again(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, path = module._try_to_lock, cache.path(objects["0.tar"])

    def late(file: FileIO) -> bool:  # another process is done before this one gets the lock of a new file
        content = remote.read("0.tar", SIZE)
        path.write_bytes(content)
        return lock(file)

    monkeypatch.setattr(module, "_try_to_lock", late)
    monkeypatch.setattr(module, "fetch", None)
    use(cache, remote, "0.tar", objects["0.tar"])
    assert here(cache) == {path.name}


def test_a_shard_that_makes_room_while_it_is_opened_is_readable(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(cache, remote, "0.tar", objects["0.tar"])

    def removed(path: Path) -> FileIO:
        file = open_regular(path)
        path.unlink()
        return file

    monkeypatch.setattr(module, "open_regular", removed)
    monkeypatch.setattr(module, "fetch", None)
    use(cache, remote, "0.tar", objects["0.tar"])


def test_a_fetch_that_is_told_to_stop_leaves_nothing(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, begun = Fetching(), threading.Event()

    def endless(self: RemoteFolder, name: str, size: int) -> object:
        while True:
            begun.set()
            yield bytes(10)

    monkeypatch.setattr(RemoteFolder, "chunks", endless)
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(cache.open, remote, "0.tar", SIZE, objects["0.tar"], fetching)
        begun.wait(10)
        fetching.stopped.set()
        with pytest.raises(FetchStoppedError):
            future.result(10)
    assert here(cache) == set()


def test_a_fetch_from_a_server_that_is_silent_stops_at_once(
    cache: ShardCache, s3: str, silent: SilentServer
) -> None:
    fetching = Fetching()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(cache.open, RemoteFolder(s3), "0.tar", SIZE, "0" * 64, fetching)
        while not silent.taken:
            time.sleep(0.01)
        fetching.stopped.set()
        with pytest.raises(FetchStoppedError):
            future.result(5)
    assert here(cache) == set()


READER = """
import sys, time
from pathlib import Path
from siamusic_fast.storage.cache import ShardCache
from siamusic_fast.storage.remote import RemoteFolder
import siamusic_fast.storage.remote as module
module.CHUNK = 1000
stored, folder, name, sha256, pause = sys.argv[1:]
original = RemoteFolder.chunks
def slowly(self, name, size):
    print("fetching", flush=True)
    for chunk in original(self, name, size):
        time.sleep(float(pause))
        yield chunk
RemoteFolder.chunks = slowly
cache = ShardCache(folder=Path(folder), size=300_001)
with cache.open(RemoteFolder(stored), name, 100_000, sha256) as file:
    print(len(file.readall()), flush=True)
"""


def start_reader(
    remote: RemoteFolder, cache: ShardCache, name: str, sha256: str, pause: float
) -> "subprocess.Popen[str]":
    words = (sys.executable, "-c", READER, remote.url, cache.folder, name, sha256, pause)
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)


def test_two_processes_share_what_one_fetches(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str]
) -> None:
    readers = [start_reader(remote, cache, "0.tar", objects["0.tar"], 0.01) for _ in range(2)]
    said = "".join(reader.communicate(timeout=60)[0] for reader in readers)
    assert said.count("100000") == 2
    assert said.count("fetching") == 1


def test_after_a_kill_while_fetching_others_go_on(
    cache: ShardCache, remote: RemoteFolder, objects: dict[str, str]
) -> None:
    reader = start_reader(remote, cache, "0.tar", objects["0.tar"], 60)
    assert reader.stdout
    assert reader.stdout.readline() == "fetching\n"
    reader.send_signal(signal.SIGKILL)
    reader.communicate(timeout=60)
    assert here(cache) == {f"{objects['0.tar']}.part"}
    use(cache, remote, "0.tar", objects["0.tar"])
    assert here(cache) == {f"{objects['0.tar']}.tar"}
    (cache.folder / "tars" / f"{objects['4.tar']}.part").write_bytes(bytes(SIZE))  # left by another kill
    for name in ("1.tar", "2.tar"):
        use(cache, remote, name, objects[name])
    assert here(cache) == {f"{objects[name]}.tar" for name in ("0.tar", "1.tar", "2.tar")}


@pytest.mark.parametrize(
    ("text", "size"),
    [("200GB", 200 * 10**9), ("1.5 TB", 15 * 10**11), ("64GiB", 2**36), ("1000", 1000), ("3m", 3 * 10**6)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_the_defaults_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    assert ShardCache() == ShardCache(folder=tmp_path / "siamusic-fast", size=200 * 10**9)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "nvme"))
    monkeypatch.setenv(SIZE_VARIABLE, "1TB")
    assert ShardCache() == ShardCache(folder=tmp_path / "nvme", size=10**12)
    monkeypatch.setenv(SIZE_VARIABLE, "much")
    with pytest.raises(ConfigError, match="cache size = 'much' is none: use a number and a unit"):
        ShardCache()
