"""Embedding on Dask gives the bytes of a local run, whatever happens to a worker."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.config import EmbedConfig
from siamusic_fast.embedding import sources
from siamusic_fast.errors import DataError
from siamusic_fast.inference.embed import embed
from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.shards.manifest import ShardSet
from tests.cluster.workers import AtStep, kill_nursed
from tests.runs import save_run

ONE_CROP = EmbedConfig(crops=1)


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILES_PER_PART", 2)


def test_a_killed_worker_and_a_change_of_engines_leave_the_bytes_of_a_local_run(
    cluster: Cluster, pretrained: Path, audio: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    call = partial(embed, pretrained, [audio, shard_set.folder], config=ONE_CROP)
    call(out=tmp_path / "expected.npz")
    expected = (tmp_path / "expected.npz").read_bytes()
    here: dict[str, Any] = {"out": tmp_path / "begun here.npz"}
    there: dict[str, Any] = {"out": tmp_path / "begun there.npz"}
    with pytest.raises(KeyboardInterrupt):
        call(**here, progress=AtStep("Embedding", 40, stop))
    with pytest.raises(KeyboardInterrupt):
        call(**there, progress=AtStep("Embedding", 40, stop), cluster=cluster)
    display = AtStep("Embedding", 1, lambda: kill_nursed(cluster))
    found = call(**here, progress=display, cluster=cluster)
    assert here["out"].read_bytes() == expected
    assert [reject.path for reject in found.rejects] == [str(audio / "broken.mp3")]
    assert display.steps == found.tracks + 1 - 38  # 36 tracks of the shards and 2 files were done here
    call(**there)
    assert there["out"].read_bytes() == expected
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("unseen", ["run", "audio"])
def test_a_worker_that_does_not_see_the_files_is_named(
    cluster: Cluster,
    pretrained: Path,
    audio: Path,
    tmp_path: Path,
    unseen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Path("/proc/self/cwd")  # which leads every process to another place
    files = {"run": pretrained, "audio": audio}
    monkeypatch.chdir(files[unseen].parent)
    files[unseen] = own / files[unseen].name
    with pytest.raises(DataError, match=r"the worker on \S+ does not see /proc/self/cwd/.*the same paths"):
        embed(files["run"], files["audio"], tmp_path / "out.npz", ONE_CROP, cluster=cluster)
    assert not (tmp_path / "out.npz").exists()


def test_a_worker_with_other_weights_is_refused(
    cluster: Cluster, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run")
    monkeypatch.setattr("siamusic_fast.inference.embed_on_cluster.weights_digest", lambda encoder: "others")
    with pytest.raises(DataError, match=r"does not see .*run, or not with the same weights"):
        embed(run, audio, tmp_path / "out.npz", ONE_CROP, cluster=cluster)
