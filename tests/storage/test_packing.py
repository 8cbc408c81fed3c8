"""Packing from and to object storage gives the bytes of packing from and to a folder."""

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.scan import scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import Task
from siamusic_fast.shards import upload
from siamusic_fast.shards.manifest import MANIFEST, REJECTED, TRACKS, ShardSet, find_shards
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.resuming import software
from siamusic_fast.shards.sharing import SharedForPacking, SharedForVerifying, permit
from siamusic_fast.shards.summary import summarize
from siamusic_fast.shards.tables import TRACKS_HEADER
from siamusic_fast.shards.upload import work_folder
from siamusic_fast.shards.verify import verify
from siamusic_fast.storage.remote import RemoteFolder, StorageError
from tests.storage.conftest import CONFIG
from tests.storage.servers import BUCKET, Relay, client


def contents(url: str) -> dict[str, bytes]:
    remote = RemoteFolder(url)
    return {name: remote.read(name, 10**9) for name in remote.list()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack_to(url: str, source: str | Path, config: PackConfig = CONFIG, **options: object) -> ShardSet:
    corpus = load_folder(source, labels="folders")
    return pack(corpus, url, config, procs=1, **options)  # type: ignore[arg-type]


class StopAfterUploads:
    """Packing that is stopped after so many shards have been uploaded, and counts those of later runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
        self.uploaded = 0
        original = upload.upload_state

        def counting(work: Path, url: str, name: str) -> None:
            original(work, url, name)
            self.uploaded += 1
            if self.uploaded == stop_after:
                raise KeyboardInterrupt

        monkeypatch.setattr("siamusic_fast.shards.pack_shard.upload_state", counting)


def test_a_shard_set_behind_a_file_url_is_that_in_the_folder(
    local: ShardSet, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIAMUSIC_FAST_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/mine"
    packed = pack_to(url, f"file://{music}")
    assert files(tmp_path / "mine") == files(local.folder)
    assert packed.place == url
    assert summarize(packed) == summarize(local)


def test_looking_for_duplicates_fetches_a_part_of_files_of_equal_size(s3: str, server: str) -> None:
    rng, size = np.random.default_rng(0), 1_000_000
    contents = [rng.bytes(size) for _ in range(3)]
    for name, content in zip("abcd", [*contents, contents[0]], strict=True):
        client(server).put_object(Bucket=BUCKET, Key=f"equal/{name}.wav", Body=content)
    relay = Relay(server, cuts=0, after=0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", relay.address)
            corpus = load_folder(f"{s3}/equal")
            found = scan(corpus, open_store(corpus.folder))
    finally:
        relay.close()
    assert [one.path for one in found.rejects] == ["d.wav"]
    assert relay.passed < 2 * size + 50_000  # the two that may be equal are read whole


@pytest.mark.usefixtures("in_process")
def test_a_stopped_packing_goes_on_from_what_is_in_the_bucket(
    s3: str, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/resumed"
    stopping = StopAfterUploads(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        pack_to(url, f"{s3}/music")
    assert MANIFEST not in contents(url)
    shutil.rmtree(work_folder(url))  # as on another machine
    pack_to(url, f"{s3}/music")
    shards = sum(map(len, local.splits.values()))
    assert stopping.uploaded == shards
    assert contents(url) == files(local.folder)


@pytest.mark.usefixtures("in_process")
def test_unfinished_work_with_other_settings_is_refused_and_replaced_with_force(
    s3: str, server: str, music: Path, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/other"
    client(server).put_object(Bucket=BUCKET, Key="other/notes/training-000000.tar", Body=b"mine")
    StopAfterUploads(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        pack_to(url, music, PackConfig(min_seconds=0.5, tracks_per_shard=2))
    with pytest.raises(DataError, match=f"{url} holds unfinished work with --tracks-per-shard 2, not 3"):
        pack_to(url, music)
    pack_to(url, music, force=True)
    found = contents(url)
    assert found.pop("notes/training-000000.tar") == b"mine"
    assert found == files(local.folder)


@pytest.mark.parametrize(
    ("key", "content", "words"),
    [
        ("manifest.json", b"{}", "manifest.json is not the manifest of a shard set"),
        ("training-000000.tar", b"mine", "files of no shard set that would be overwritten, such as training"),
        (".packing/notes", b"mine", r"\.packing was not made by siamusic-fast"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_files_of_others_are_never_touched(
    s3: str, server: str, music: Path, key: str, content: bytes, words: str
) -> None:
    url = f"{s3}/foreign-{len(key)}"
    client(server).put_object(Bucket=BUCKET, Key=f"foreign-{len(key)}/{key}", Body=content)
    for force in (False, True):
        with pytest.raises(DataError, match=words):
            pack_to(url, music, force=force)
    assert contents(url) == {key: content}


def test_a_packer_stops_when_another_machine_starts_over_or_has_ended(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ".packing/training-000000.json"

    @contextmanager
    def elsewhere(url: str, force: bool = False) -> Iterator[Path]:
        monkeypatch.setenv("SIAMUSIC_FAST_CACHE", str(tmp_path / secrets.token_hex(4)))
        with upload.exclusive_remote(url, {"shards": 1}, force) as work:
            (work / state).touch()
            yield work
            for name in (TRACKS, REJECTED, MANIFEST):
                (work / name).write_bytes(TRACKS_HEADER)

    url = f"{s3}/ended"
    stopped = pytest.raises(DataError, match="is not being packed by this run any more")
    with stopped, elsewhere(url) as first:
        with elsewhere(url) as second:  # packs the same, so both may
            upload.upload_state(first, url, Path(state).name)
            upload.upload_state(second, url, Path(state).name)
        upload.upload_state(first, url, Path(state).name)
    url = f"{s3}/taken"
    with stopped, elsewhere(url) as first, elsewhere(url, force=True) as second:
        upload.upload_state(second, url, Path(state).name)
        upload.upload_state(first, url, Path(state).name)


@pytest.mark.usefixtures("in_process")
def test_what_a_late_upload_leaves_beside_a_whole_set_goes_with_force(
    s3: str, server: str, music: Path, local: ShardSet
) -> None:
    for name, content in files(local.folder).items():
        client(server).put_object(Bucket=BUCKET, Key=f"late/{name}", Body=content)
    client(server).put_object(Bucket=BUCKET, Key="late/.packing/training-000000.json", Body=b"{}")
    with pytest.raises(DataError, match=f"{s3}/late already holds a shard set"):
        pack_to(f"{s3}/late", music)
    pack_to(f"{s3}/late", music, force=True)
    assert contents(f"{s3}/late") == files(local.folder)


def test_a_second_packer_of_this_machine_is_refused(s3: str, music: Path) -> None:
    with upload.exclusive_remote(f"{s3}/twice", {"shards": 1}, force=False):
        with pytest.raises(DataError, match=f"{s3}/twice is being packed by another run"):
            pack_to(f"{s3}/twice", music)
        raise_nothing = RemoteFolder(f"{s3}/twice").list()
        assert set(raise_nothing) == {".packing/lock"}
        for name in ("tracks.csv", "rejected.csv", "manifest.json"):
            (work_folder(f"{s3}/twice") / name).touch()


@pytest.mark.usefixtures("in_process")
def test_storage_that_fails_while_packing_ends_it_and_the_same_command_goes_on(
    s3: str, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/failing"
    original = RemoteFolder.put

    def failing(self: RemoteFolder, file: Path, name: str) -> None:
        if name == "tracks.csv":
            raise StorageError(f"{self.url} cannot be reached.")
        original(self, file, name)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", failing)
        shards = sum(map(len, local.splits.values()))
        with pytest.raises(DataError, match=f"cannot be reached. When that is mended, .* {shards} shards"):
            pack_to(url, f"{s3}/music")
    pack_to(url, f"{s3}/music")
    assert contents(url) == files(local.folder)


@pytest.mark.usefixtures("in_process")
def test_audio_that_goes_away_in_the_bucket_ends_packing(s3: str, server: str, music: Path) -> None:
    s3_client = client(server)
    for name in ("a.flac", "b.flac"):
        content = (music / "Folk" / f"take {'ab'.index(name[0]) * 2}.flac").read_bytes()
        s3_client.put_object(Bucket=BUCKET, Key=f"leaving/{name}", Body=content)

    class Removing:
        @contextmanager
        def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
            if description == "Packing":
                s3_client.delete_object(Bucket=BUCKET, Key="leaving/b.flac")
            yield self

        def advance(self, *_: object, **__: object) -> None: ...

    with pytest.raises(DataError, match=r"b\.flac"):
        pack(load_folder(f"{s3}/leaving"), f"{s3}/left", CONFIG, procs=1, progress=Removing())


@pytest.mark.usefixtures("in_process")
def test_what_is_not_read_from_or_packed_to_a_url_is_refused(s3: str, music: Path) -> None:
    from siamusic_fast.audio.sources import open_corpus

    with pytest.raises(DataError, match=f"{s3}/magnatagatune is read as a folder of audio"):
        open_corpus(f"{s3}/magnatagatune")
    with pytest.raises(ConfigError, match="'s5://bucket/x' begins with none of s3://, gs://, az://, file://"):
        open_corpus("s5://bucket/x")
    with pytest.raises(ConfigError, match="workers of a cluster pack into a folder that they share"):
        pack_to(f"{s3}/x", music, cluster=object())
    with pytest.raises(DataError, match=f"s3://{BUCKET}/empty has no tracks"):
        load_folder(f"{s3}/empty")


@pytest.mark.usefixtures("in_process")
def test_verify_names_what_is_wrong_in_the_bucket(
    s3: str, server: str, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_client = client(server)
    for name, content in files(local.folder).items():
        s3_client.put_object(Bucket=BUCKET, Key=f"wrong/{name}", Body=content)
    first, second = (shard.file for shard in local.splits["training"][:2])
    spoilt = bytearray((local.folder / first).read_bytes())
    spoilt[700] ^= 1
    s3_client.put_object(Bucket=BUCKET, Key=f"wrong/{first}", Body=bytes(spoilt))
    s3_client.delete_object(Bucket=BUCKET, Key=f"wrong/{second}")
    s3_client.put_object(Bucket=BUCKET, Key="wrong/training-9.tar", Body=b"")
    s3_client.put_object(Bucket=BUCKET, Key="wrong/notes.txt", Body=b"")
    asked, original = set(), RemoteFolder.chunks

    def chunks(self: RemoteFolder, name: str, size: int) -> Iterator[bytes]:
        asked.add(name)
        return original(self, name, size)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "chunks", chunks)
        found = verify(f"{s3}/wrong", procs=1)
    assert asked == {path.name for path in local.folder.iterdir()} - {second}
    problems = {problem.file: problem.what for problem in found.problems}
    assert set(problems) == {first, second, "training-9.tar"}
    assert problems[second].startswith("cannot be read: No such file")
    assert problems["training-9.tar"] == "is not in the manifest"
    assert found.unknown == ("notes.txt",)
    with pytest.raises(DataError, match=f"{s3}/wrong/{second} is missing or damaged .* verify {s3}/wrong`"):
        find_shards(f"{s3}/wrong")
    s3_client.put_object(Bucket=BUCKET, Key="wrong/frontends.json", Body=bytes(2**20 + 1))
    with pytest.raises(DataError, match=f"{s3}/wrong/frontends.json must have at most 1,048,576 bytes"):
        verify(f"{s3}/wrong")
    with pytest.raises(DataError, match=f"no shards at '{s3}/nothing': there is no {s3}/nothing/manifest"):
        verify(f"{s3}/nothing")


def test_workers_of_a_cluster_say_whether_they_see_what_is_at_a_url(
    s3: str, local: ShardSet, music: Path, tmp_path: Path
) -> None:
    path = "Folk/take 0.flac"
    shared = SharedForPacking(
        software=software(),
        audio=f"{s3}/music",
        in_tables=False,
        path=path,
        size=(music / path).stat().st_size,
        folder=tmp_path,
        token="0" * 16,
    )
    (tmp_path / ".packing").mkdir()
    with permit(shared):
        assert shared.check().startswith("seen-")
        with pytest.raises(
            DataError, match=f"does not see {s3}/elsewhere, or not with the same 'Folk/take 0"
        ):
            replace(shared, audio=f"{s3}/elsewhere").check()
    sha256 = hashlib.sha256(local.path(MANIFEST).read_bytes()).hexdigest()
    SharedForVerifying(folder=tmp_path, url=f"{s3}/shards", sha256=sha256).check()
    with pytest.raises(DataError, match=f"does not see {s3}/music, or not with the same {MANIFEST}"):
        SharedForVerifying(folder=tmp_path, url=f"{s3}/music", sha256=sha256).check()
