"""Packing and verifying on Dask: a scheduler and two workers, as processes, over TCP."""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.errors import DataError
from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.shards.pack import pack
from siamusic_fast.shards.resuming import UNFINISHED, unfinished
from siamusic_fast.shards.tables import read_rejects
from siamusic_fast.shards.verify import verify
from tests.cluster.workers import AtStep, kill_nursed, pid_and_name
from tests.shards.killing import CONFIG, Serial, contents, kill_readers, pack_serially
from tests.shards.test_resume import StopAfter


@pytest.fixture(scope="module")
def expected(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    pack_serially(audio, folder)
    return contents(folder)


def keys_of_tasks(dask_scheduler: Any) -> set[str]:
    return {str(transition[0]) for transition in dask_scheduler.transition_log}


@pytest.mark.parametrize("nursed_dies", [False, True])
def test_bytes_are_those_of_a_local_run_even_if_a_worker_is_killed(
    cluster: Cluster, audio: Path, expected: dict[str, bytes], tmp_path: Path, nursed_dies: bool
) -> None:
    display = AtStep("Packing", 1, lambda: kill_nursed(cluster) if nursed_dies else None)
    pids = {pid for pid, _ in cluster._client.run(pid_and_name).values()}
    pack(load_folder(audio), tmp_path / "set", CONFIG, cluster=cluster, progress=display)
    assert contents(tmp_path / "set") == expected
    assert not (tmp_path / "set" / UNFINISHED).exists()
    assert display.steps == 10
    assert ({pid for pid, _ in cluster._client.run(pid_and_name).values()} != pids) == nursed_dies
    keys = cluster._client.run_on_scheduler(keys_of_tasks)
    assert any(re.fullmatch(r"shard-training-unlabelled-000003-[0-9a-f]{8}", key) for key in keys)


def test_verify_finds_on_a_cluster_what_it_finds_here(cluster: Cluster, audio: Path, tmp_path: Path) -> None:
    pack_serially(audio, tmp_path)
    assert verify(tmp_path, cluster=cluster).problems == ()
    tar = tmp_path / "training-unlabelled-000001.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    found = verify(tmp_path, cluster=cluster)
    assert found.problems
    assert found == verify(tmp_path, procs=1)


class StopsAt(Serial):
    """Runs jobs when they are submitted, until the user presses Ctrl-C before the `job`-th."""

    def __init__(self, job: int) -> None:
        self.left = job

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().submit(function, *args, **kwargs)


@pytest.mark.parametrize("begun_on_cluster", [True, False])
def test_what_one_engine_began_the_other_ends(
    cluster: Cluster, audio: Path, expected: dict[str, bytes], tmp_path: Path, begun_on_cluster: bool
) -> None:
    here, there = {"procs": 1}, {"cluster": cluster}
    first: dict[str, Any] = there if begun_on_cluster else {"executor": StopsAt(3)}
    second: dict[str, Any] = here if begun_on_cluster else there
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(audio), tmp_path, CONFIG, **first, progress=StopAfter(1))
    assert not list((tmp_path / UNFINISHED).glob("permit-*"))
    state = unfinished(tmp_path)
    assert state is not None
    assert state.finished < state.shards == 5  # of which 4 were sent
    (tmp_path / ".training-unlabelled-000003.tar-01ab23cd.tmp").touch()  # of a worker that was killed
    before = {file: file.stat().st_ino for file in tmp_path.glob("*.tar")}
    pack(load_folder(audio), tmp_path, CONFIG, **second)
    assert contents(tmp_path) == expected
    assert sum(file.stat().st_ino == inode for file, inode in before.items()) >= state.finished


def watch(path: Path) -> None:
    threading.Thread(target=kill_readers, args=(path, 2), daemon=True).start()


def test_a_file_that_kills_processes_is_left_out_and_kills_no_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    music = tmp_path / "music"
    music.mkdir()
    noise = np.random.default_rng(0).integers(-999, 999, 8000, np.int16)
    soundfile.write(music / "deadly.flac", np.tile(noise, 300), 8000)
    soundfile.write(music / "good.wav", np.full(8000, 0.1), 8000)
    pids = cluster._client.run(os.getpid)
    cluster._client.run(watch, music / "deadly.flac")
    with pytest.warns(UserWarning, match=r"while it decoded deadly\.flac, .*that file is left out"):
        pack(load_folder(music), tmp_path / "out", CONFIG, cluster=cluster)
    reason = Reject("deadly.flac", "error", "worker processes died while they decoded this file")
    assert list(read_rejects(tmp_path / "out")) == [reason]
    assert cluster._client.run(os.getpid) == pids


@pytest.mark.parametrize("unseen", ["audio", "shards"])
def test_a_worker_that_does_not_see_the_files_is_named(
    cluster: Cluster, audio: Path, tmp_path: Path, unseen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This path leads every process to another place.
    own = Path("/proc/self/cwd")
    monkeypatch.chdir(audio.parent)
    source = own / audio.name if unseen == "audio" else audio
    folder = own / f"{tmp_path.name}-set" if unseen == "shards" else tmp_path / "set"
    with pytest.raises(DataError, match=r"the worker on \S+ does not see .*/proc/self/cwd/.*the same paths"):
        pack(load_folder(source), folder, CONFIG, cluster=cluster)
    if unseen == "shards":
        pack_serially(audio, folder)
        with pytest.raises(
            DataError, match=r"the worker on \S+ does not see /proc/self/cwd/.*manifest\.json"
        ):
            verify(folder, cluster=cluster)


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        (
            "import siamusic_fast as s; s.__version__ += 'x'",
            "import siamusic_fast as s; s.__version__ = s.__version__[:-1]",
            r"the worker at tcp://\S+ has siamusic-fast \S+x, not siamusic-fast .*bytes could differ",
        ),
        (
            "import soxr; soxr.__version__ += 'x'",
            "import soxr; soxr.__version__ = soxr.__version__[:-1]",
            r"the worker on \S+ has siamusic-fast .*soxr \S+x, not siamusic-fast .*bytes could differ",
        ),
    ],
)
def test_a_worker_with_other_software_is_refused(
    cluster: Cluster, audio: Path, tmp_path: Path, change: str, back: str, words: str
) -> None:
    cluster._client.run(exec, change)
    with pytest.raises(DataError, match=words):
        pack(load_folder(audio), tmp_path, CONFIG, cluster=cluster)
    cluster._client.run(exec, back)
    assert not list(tmp_path.glob("*.tar"))
