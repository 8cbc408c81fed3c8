"""A bucket for all tests of object storage, with the music and the shard set of other tests in it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.storage import remote
from siamusic_fast.storage.cache import CACHE_VARIABLE, SIZE_VARIABLE
from tests.storage.servers import BUCKET, VARIABLES, SilentServer, client, s3_server

CONFIG = PackConfig(min_seconds=0.5, tracks_per_shard=3)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 10 files of 1 to 2 s of noise in two sub-folders, and one that is no audio."""
    folder = tmp_path_factory.mktemp("corpus") / "music"
    rng = np.random.default_rng(0)
    for number in range(10):
        path = folder / ("Folk", "Röck")[number % 2] / f"take {number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 22_050 + 2205 * number), 22_050)
    (folder / "Folk" / "broken.mp3").write_text("no audio")
    return folder


@pytest.fixture(scope="session")
def local(music: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The shard set of `music`, packed from and to the local disk."""
    return pack(
        load_folder(music, labels="folders"), tmp_path_factory.mktemp("shards") / "mine", CONFIG, procs=1
    )


@pytest.fixture(scope="session")
def stored(server: str, music: Path, local: ShardSet) -> None:
    """Put `music` and `local` into the bucket, as music and shards."""
    s3 = client(server)
    for folder, prefix in ((music, "music"), (local.folder, "shards")):
        for path in folder.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


@pytest.fixture
def s3(server: str, stored: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of the bucket; the environment leads to it, and the cache is empty."""
    for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
    return f"s3://{BUCKET}"


@pytest.fixture
def silent(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentServer]:
    """A server that never answers, to which the environment leads in the place of the bucket's."""
    server = SilentServer()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    yield server
    server.close()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this process, which spares the time to start others, and where tests can stop it."""

    def run(function: object, jobs: object, **_: object) -> None:
        for job in jobs:  # type: ignore[attr-defined]
            function(job, lambda _: None)  # type: ignore[operator]

    monkeypatch.setattr("siamusic_fast.shards.pack.run_in_processes", run)
    monkeypatch.setattr("siamusic_fast.shards.verify.run_in_processes", run)
