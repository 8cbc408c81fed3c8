"""Training from object storage gives the batches and the weights of training from a folder."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.cli import main
from siamusic_fast.embedding.sources import open_sources
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.models import networks as models
from siamusic_fast.pipelines import estimate
from siamusic_fast.pipelines.epoch_order import EpochOrder
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.fetch_ahead import FetchAhead
from siamusic_fast.pipelines.loaders import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.plan import TrackPlan
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.index import read_index
from siamusic_fast.shards.manifest import ShardSet, check_tracks, find_shards
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.samples import samples
from siamusic_fast.storage.cache import CACHE_VARIABLE, ShardCache
from siamusic_fast.storage.remote import RemoteFolder
from tests.runs import FRONTEND, MEL
from tests.storage.servers import BUCKET, Relay, client
from tests.training.networks import TinyEncoder
from tests.training.test_pretrain import assert_same_weights


@pytest.fixture(scope="session")
def many(music: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tracks of `music` without classes, one in a shard: ten shards of unequal size."""
    folder = tmp_path_factory.mktemp("shards") / "many"
    return pack(load_folder(music), folder, PackConfig(min_seconds=0.5, tracks_per_shard=1), procs=1)


def remote_of(shard_set: ShardSet, cache: Path, size: int = 10**9) -> ShardSet:
    return find_shards(f"file://{shard_set.folder}", cache=ShardCache(folder=cache, size=size))


def batches(loader: Any, epochs: int) -> list[torch.Tensor]:
    with loader:
        return [torch.stack(tuple(views)) for _ in range(epochs) for views in loader]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that are fetched, in order."""
    found: list[str] = []
    original = RemoteFolder.chunks

    def counted(self: RemoteFolder, name: str, size: int) -> object:
        if name.endswith(".tar"):
            found.append(name)
        return original(self, name, size)

    monkeypatch.setattr(RemoteFolder, "chunks", counted)
    return found


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_batches_of_both_engines_are_those_of_local_shards_and_each_shard_is_fetched_once(
    s3: str, local: ShardSet, fetched: list[str], backend: str
) -> None:
    options: dict[str, Any] = {"aug": "both", "frontend": FRONTEND, "batch_size": 2, "backend": backend}
    options["window"] = 2
    expected = batches(TwoViewLoader(local, **options), 2)
    assert_equal(batches(TwoViewLoader(f"{s3}/shards", **options), 2), expected)
    assert sorted(fetched) == [shard.file for shard in local.splits["training"]]


def test_labels_and_evaluation_are_those_of_local_shards(local: ShardSet, tmp_path: Path) -> None:
    remote = remote_of(local, tmp_path)
    for kind, options in (
        (LabelledLoader, {"batch_size": 2}),
        (TrackLoader, {"splits": ["training", "test"]}),
    ):
        with (
            kind(local, frontend=FRONTEND, backend="torch", **options) as ours,
            kind(remote, frontend=FRONTEND, backend="torch", **options) as theirs,
        ):
            for (mels, labels), (mels_here, labels_here) in zip(theirs, ours, strict=True):
                assert torch.equal(mels, mels_here)
                assert torch.equal(labels, labels_here)


def test_mean_and_std_are_estimated_once_of_parts_of_shards_and_kept_in_the_cache(
    local: ShardSet, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(local.folder, tmp_path / "mine")
    monkeypatch.setattr(estimate, "_MAX_TRACKS", 2)
    expected = estimate_frontend(find_shards(tmp_path / "mine"), MEL)
    parts, original = [], RemoteFolder.read_part

    def counted(self: RemoteFolder, name: str, start: int, length: int) -> bytes:
        parts.append(name)
        return original(self, name, start, length)

    monkeypatch.setattr(RemoteFolder, "read_part", counted)
    for _ in range(2):
        assert estimate_frontend(remote_of(local, tmp_path), MEL) == expected
        assert len(parts) == 2
    assert fetched == []  # no tar as a whole


def test_shards_that_make_room_while_others_are_read_change_no_batch(
    many: ShardSet, tmp_path: Path, fetched: list[str]
) -> None:
    options: dict[str, Any] = {"aug": "none", "frontend": FRONTEND, "backend": "torch", "window": 1}
    expected = batches(TwoViewLoader(many, batch_size=1, **options), 3)
    size = sum(sorted(shard.bytes for shard in many.splits["training"])[-3:])
    found = batches(TwoViewLoader(remote_of(many, tmp_path, size), batch_size=1, **options), 3)
    assert_equal(found, expected)
    assert len(fetched) > len(many.splits["training"])  # those of the first epoch had to make room
    assert sum(path.stat().st_size for path in (tmp_path / "tars").glob("*.tar")) <= size


def test_tars_that_made_room_do_not_keep_their_disk_space(many: ShardSet, tmp_path: Path) -> None:
    size = sum(sorted(shard.bytes for shard in many.splits["training"])[-3:])
    options: dict[str, Any] = {"aug": "none", "frontend": FRONTEND, "backend": "torch", "batch_size": 1}
    with TwoViewLoader(remote_of(many, tmp_path, size), window=1, **options) as loader:
        plan, reader = loader.plan, loader._reader
        for place in ((epoch, number) for epoch in range(2) for number in range(plan.batches)):
            reader.reach(plan, place)
            (spans,) = plan.batch(place).spans
            reader.read(spans, slice(0, 1), np.empty((1, int(spans.samples[0])), np.int16))
            links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
            removed = [one for one in links if one.is_relative_to(tmp_path) and "(deleted)" in one.name]
            assert sum(one.name.endswith(".tar (deleted)") for one in removed) <= 1  # of the window before


def test_what_is_read_next_does_not_make_room_for_what_is_read_after_it(
    many: ShardSet, tmp_path: Path, fetched: list[str]
) -> None:
    shards = many.splits["training"]
    size = max(one.bytes + other.bytes for one, other in itertools.pairwise(shards))
    tracks = open_tracks(remote_of(many, tmp_path, size), ["training"])
    plan, ahead = TrackPlan(tracks, FRONTEND, crops=1, batch_size=1), FetchAhead(tracks)
    for number in range(len(shards)):
        ahead.reach(plan, (0, number))
        for shard in range(number, min(number + 2, len(shards)))[::-1]:  # the one that is read is used last
            ahead.open(shard).close()
            time.sleep(0.01)  # times of use differ
    ahead.stop()
    assert sorted(fetched) == [shard.file for shard in shards]  # each once


def test_a_shard_that_somebody_removes_from_the_cache_is_fetched_again(
    many: ShardSet, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"aug": "none", "frontend": FRONTEND, "backend": "torch", "batch_size": 2}
    expected = batches(TwoViewLoader(many, **options), 2)
    found = []
    with TwoViewLoader(remote_of(many, tmp_path), **options) as loader:
        for _ in range(2):
            for views in loader:
                found.append(torch.stack(views))
                for path in (tmp_path / "tars").glob("*.tar"):
                    path.unlink(missing_ok=True)
                loader._reader._tars.keep(set())
    assert_equal(found, expected)


def test_a_cache_too_small_for_what_is_read_at_a_time_is_refused(many: ShardSet, tmp_path: Path) -> None:
    sizes = sorted((shard.bytes for shard in many.splits["training"]), reverse=True)
    too_small = remote_of(many, tmp_path, sum(sizes) - 1)
    with pytest.raises(ConfigError, match=r"are read at a time without a window: give it .*-size 1GB\)\.$"):
        TwoViewLoader(too_small, frontend=FRONTEND, backend="torch", batch_size=1)
    with pytest.raises(ConfigError, match="are read at a time with window = 5"):
        TwoViewLoader(too_small, frontend=FRONTEND, backend="torch", batch_size=1, window=5)
    TwoViewLoader(too_small, frontend=FRONTEND, backend="torch", batch_size=1, window=4).close()


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_shard_that_is_spoilt_after_it_was_opened_ends_loading_with_its_name(
    many: ShardSet, tmp_path: Path, damage: str
) -> None:
    for file in many.folder.iterdir():
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / file.name).write_bytes(file.read_bytes())
    shard = many.splits["training"][0]
    remote = find_shards(f"file://{tmp_path}/set", cache=ShardCache(folder=tmp_path / "cache", size=10**9))
    with TwoViewLoader(remote, frontend=FRONTEND, backend="torch", batch_size=10) as loader:
        tar = tmp_path / "set" / shard.file
        if damage == "changed":
            content = bytearray(tar.read_bytes())
            content[2000] ^= 1
            tar.write_bytes(content)
        else:
            tar.unlink()
        words = "is damaged or was changed" if damage == "changed" else "is not there"
        with pytest.raises(DataError, match=f"set/{shard.file} {words}"):
            next(iter(loader))


def test_connections_that_are_cut_while_training_change_no_batch(
    s3: str, server: str, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"aug": "none", "frontend": FRONTEND, "batch_size": 4, "backend": "torch"}
    expected = batches(TwoViewLoader(local, **options), 1)
    relay = Relay(server, cuts=0, after=50_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.address)
    try:
        loader = TwoViewLoader(f"{s3}/shards", **options)
        relay.cuts_left = 3
        assert_equal(batches(loader, 1), expected)
        assert relay.cuts_left == 0
    finally:
        relay.close()


def test_a_table_that_is_spoilt_in_the_bucket_or_in_the_cache_is_noticed(
    s3: str, server: str, local: ShardSet
) -> None:
    for file in local.folder.iterdir():
        client(server).upload_file(str(file), BUCKET, f"spoilt/{file.name}")
    client(server).put_object(Bucket=BUCKET, Key="spoilt/tracks.csv", Body=b"index,key\n")
    with pytest.raises(DataError, match=f"{s3}/spoilt/tracks.csv is damaged or was changed"):
        find_shards(f"{s3}/spoilt")
    good = find_shards(f"{s3}/shards")
    good.path("tracks.csv").write_bytes(b"spoilt")
    with pytest.raises(DataError, match=f"{s3}/shards/tracks.csv .*`siamusic-fast verify {s3}/shards`"):
        check_tracks(good)
    shard = good.splits["training"][0]
    good.path(shard.index).write_bytes(b"spoilt")
    with pytest.raises(DataError, match=f"{s3}/shards/{shard.index} .*`siamusic-fast verify {s3}/shards`"):
        read_index(good, shard)
    again = find_shards(f"{s3}/shards")
    assert again.path("tracks.csv").read_bytes() == local.path("tracks.csv").read_bytes()


def test_a_table_that_is_far_too_large_is_refused_before_it_is_fetched(
    s3: str, server: str, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in local.folder.iterdir():
        client(server).upload_file(str(path), BUCKET, f"large/{path.name}")
    monkeypatch.setattr("siamusic_fast.shards.remote_set.TABLE_LIMIT", 100)
    with pytest.raises(DataError, match=f"{s3}/large/.* must have at most 100 bytes"):
        find_shards(f"{s3}/large", cache=ShardCache(folder=tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.csv"))


def test_a_damaged_manifest_in_the_bucket_is_named_by_its_url(s3: str, server: str, local: ShardSet) -> None:
    content = local.path("manifest.json").read_bytes().replace(b'"codec": "wav"', b'"codec": "ogg"')
    client(server).put_object(Bucket=BUCKET, Key="manifest/manifest.json", Body=content)
    with pytest.raises(DataError, match=f"{s3}/manifest/manifest.json is damaged .was changed"):
        find_shards(f"{s3}/manifest")


def test_other_readers_of_shard_sets_take_a_url(
    local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    remote = remote_of(local, tmp_path)
    for (key, pcm, label, _), (key_here, pcm_here, label_here, _) in zip(
        samples(remote, split="test"), samples(local, split="test"), strict=True
    ):
        assert (key, label) == (key_here, label_here)
        assert np.array_equal(pcm, pcm_here)
    assert open_sources(f"file://{local.folder}").digest() == open_sources(local).digest()


def test_a_few_steps_from_a_bucket_end_with_the_weights_of_local_shards(
    s3: str, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "encoder", TinyEncoder)
    words: tuple[str, ...] = (
        "--backbone",
        "resnet18",
        "--epochs",
        "2",
        "--batch-size",
        "4",
        "--backend",
        "torch",
    )
    words += ("--preset", "paper", "--seconds", "0.5", "--window", "1", "--logger", "none")
    remote = ("--data", f"{s3}/shards", "--cache", str(tmp_path / "own"), "--cache-size", "1GB")
    shutil.copytree(local.folder, tmp_path / "mine")
    for name, data in (("local", ("--data", str(tmp_path / "mine"))), ("remote", remote)):
        done = CliRunner().invoke(
            main, ("pretrain", *words, *data, "--gpus", "0", "--out", str(tmp_path / name))
        )
        assert done.exit_code == 0, done.output
    assert_same_weights(tmp_path / "local", tmp_path / "remote")
    following = ("finetune", tmp_path / "remote", *remote[:2], "--cache", tmp_path / "own", "--cache-size1GB")
    assert "".join(map(str, following)) in "".join(done.output.split())
    assert json.loads((tmp_path / "remote" / "config.json").read_text())["data"] == f"{s3}/shards"
    assert list((tmp_path / "own" / "tars").glob("*.tar"))
    assert os.environ["SIAMUSIC_FAST_CACHE"] == str(tmp_path / "cache")  # as it was before the command
    small = CliRunner().invoke(
        main, ("pretrain", *words, *remote[:-1], "300KB", "--out", str(tmp_path / "x"))
    )
    assert small.exit_code == 1
    assert "are read at a time with window = 1: give it more" in small.stderr.replace("\n", " ")
    assert "--window" not in small.stderr
    bad = CliRunner().invoke(main, ("pretrain", "--cache-size", "huge"))
    assert "cache size = 'huge' is none" in bad.stderr


def test_the_shards_of_windows_are_those_that_batches_read() -> None:
    rng = np.random.default_rng(0)
    for window in (1, 2, 3, 10, None):
        counts = rng.integers(1, 5, 10)
        order = EpochOrder(counts, seed=1, window=window)
        shard_of = np.repeat(np.arange(10), counts)
        for epoch in range(2):
            for first in range(0, order.size, 3):
                last = min(first + 2, order.size - 1)
                read = set(shard_of[order.tracks(epoch, np.arange(first, last + 1))].tolist())
                after = set(shard_of[order.tracks(epoch, np.array([min(last + 1, order.size - 1)]))].tolist())
                assert read | after <= set(order.shards(epoch, first, last))
        next_epoch = set(shard_of[order.tracks(1, np.array([0]))].tolist())
        assert next_epoch <= set(order.shards(0, order.size - 1, order.size - 1))
