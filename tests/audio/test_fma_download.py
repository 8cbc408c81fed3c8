import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.audio.fma_download import download, lock_part
from siamusic_fast.errors import DataError

CONTENT = np.random.default_rng(0).bytes(5_000_001)
METADATA = b"PK the metadata"
SHA1S = {
    "fma_metadata": hashlib.sha1(METADATA).hexdigest(),
    "fma_small": hashlib.sha1(CONTENT).hexdigest(),
}
DROP_AFTER = 2_000_000


class Server(ThreadingHTTPServer):
    """Serves the two zips, and misbehaves in the way that `fault` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = ""
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, name: str) -> list[str]:
        return [asked for path, asked in self.requests if path == f"/{name}"]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.requests.append((self.path, asked))
        content = {"/fma_metadata.zip": METADATA, "/fma_small.zip": CONTENT}.get(self.path)
        if content is None or self.server.fault == "gone":
            return self.send_error(404)
        if self.server.fault == "busy":
            return self.send_error(503)
        if self.server.fault == "log-in page":
            content, asked = b"<html>Welcome to our network</html>", ""
        if self.server.fault == "wrong bytes":
            content = content[:-1] + b"!"
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(found[1]) if found and "ignore ranges" not in self.server.fault else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.fault != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if "drop" in self.server.fault:
            end = start + DROP_AFTER * (len(self.server.ranges(self.path[1:])) if not start else 1)
        self.wfile.write(content[start:end])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[[], list[Path]]:
    return lambda: download("fma_small", tmp_path, base_url=server.url, sha1s=SHA1S, pauses=(0.01,) * 3)


def test_both_zips_are_fetched_and_nothing_else_stays(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    assert fetch() == [tmp_path / "fma_metadata.zip", tmp_path / "fma_small.zip"]
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fma_metadata.zip", "fma_small.zip"]
    fetch()
    assert len(server.requests) == 2, "what is there and right is not fetched again"


def test_a_dropped_connection_is_resumed_where_it_broke(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    server.fault = "drop"
    fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT
    assert server.ranges("fma_small.zip") == ["", f"bytes={DROP_AFTER}-", f"bytes={2 * DROP_AFTER}-"]


def test_a_server_that_ignores_ranges_loses_nothing_either(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    server.fault = "drop, ignore ranges"
    fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT


def test_a_later_call_goes_on_from_what_an_earlier_one_got(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_small.zip.part").write_bytes(CONTENT[:1234])
    fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT
    assert server.ranges("fma_small.zip") == ["bytes=1234-"]


def test_a_download_that_was_complete_only_gets_its_name(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_small.zip.part").write_bytes(CONTENT)
    fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT


def test_what_was_got_is_kept_when_the_server_stays_away(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_small.zip.part").write_bytes(CONTENT[:1_500_000])
    (tmp_path / "fma_metadata.zip").write_bytes(METADATA)
    server.fault = "busy"
    with pytest.raises(DataError, match=r"HTTP 503.*1\.5 MB are kept in .*fma_small\.zip\.part"):
        fetch()
    assert (tmp_path / "fma_small.zip.part").read_bytes() == CONTENT[:1_500_000]
    assert len(server.requests) == 1 + 3


def test_wrong_bytes_never_get_the_name_of_the_zip(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_metadata.zip").write_bytes(METADATA)
    server.fault = "wrong bytes"
    for _ in range(2):
        with pytest.raises(DataError, match=r"gave SHA-1 [0-9a-f]{40}, FMA's has .*delete .*\.part"):
            fetch()
    assert not (tmp_path / "fma_small.zip").exists()


def test_a_log_in_page_does_not_spoil_what_was_got(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_metadata.zip").write_bytes(METADATA)
    (tmp_path / "fma_small.zip.part").write_bytes(CONTENT[:1_500_000])
    server.fault = "log-in page"
    with pytest.raises(
        DataError, match=r"answers with 0\.0 MB, and .*\.part has 1\.5 MB .*log-in page.*kept"
    ):
        fetch()
    assert (tmp_path / "fma_small.zip.part").read_bytes() == CONTENT[:1_500_000]
    server.fault = ""
    fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == CONTENT


def test_a_file_of_the_user_that_differs_is_named_and_left_alone(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_metadata.zip").write_bytes(METADATA)
    (tmp_path / "fma_small.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"fma_small\.zip has SHA-1 .*move it away"):
        fetch()
    assert (tmp_path / "fma_small.zip").read_bytes() == b"mine"
    assert server.requests == []


def test_what_is_unpacked_already_is_not_fetched(
    server: Server, fetch: Callable[[], list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "fma_small").mkdir()
    assert fetch() == [tmp_path / "fma_metadata.zip", tmp_path / "fma_small"]


@pytest.mark.parametrize(("fault", "words"), [("gone", "HTTP 404"), ("no length", "without its size")])
def test_a_server_that_is_of_no_use_is_named_at_once(
    server: Server, fetch: Callable[[], list[Path]], fault: str, words: str
) -> None:
    server.fault = fault
    with pytest.raises(DataError, match=words):
        fetch()
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match=r"broke off \(.*refused.*0\.0 MB are kept"):
        download("fma_small", tmp_path, base_url="http://127.0.0.1:9", sha1s=SHA1S, pauses=())


def test_a_disk_without_room_is_named_before_anything_is_written(
    fetch: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"0\.0 GB free.*--data-dir"):
        fetch()


def test_a_second_download_of_the_same_is_refused(fetch: Callable[[], list[Path]], tmp_path: Path) -> None:
    part = tmp_path / "fma_metadata.zip.part"
    with part.open("ab") as file:
        lock_part(file, part)
        with pytest.raises(DataError, match="another run"):
            fetch()


@pytest.mark.parametrize("name", ["fma_tiny", "fma_metadata", "../fma_small"])
def test_only_the_subsets_can_be_downloaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be downloaded: there are fma_small, fma_medium"):
        download(name, tmp_path)
