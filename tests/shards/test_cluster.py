"""Packing and verifying on Dask: a scheduler and two workers, as processes, over TCP."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes import cluster as cluster_module
from siamusic_fast.processes.cluster import Cluster, open_cluster
from siamusic_fast.progress import Task
from siamusic_fast.shards.pack import pack
from siamusic_fast.shards.resuming import UNFINISHED, unfinished
from siamusic_fast.shards.tables import read_rejects
from siamusic_fast.shards.verify import verify
from tests.shards.killing import CONFIG, contents, kill_readers, pack_serially
from tests.shards.test_resume import StopAfter

ROOT = Path(__file__).parents[2]


def start(*words: str | Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, words)], stdout=file, stderr=file, env=environment, cwd=ROOT
        )


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers of one thread; a nanny replaces the one that is killed."""
    folder = tmp_path_factory.mktemp("dask")
    scheduler, worker = "distributed.cli.dask_scheduler", "distributed.cli.dask_worker"
    log = folder / "scheduler.log"
    running = [start(scheduler, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", log=log)]
    try:
        while not (found := re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())):
            assert running[0].poll() is None, log.read_text()
        options = ("--nthreads", "1", "--no-dashboard", "--local-directory", folder, "--host", "127.0.0.1")
        for name, nanny in (("plain", "--no-nanny"), ("nursed", "--nanny")):
            words = (worker, found[0], nanny, "--name", name, *options)
            running.append(start(*words, log=folder / f"{name}.log"))
        yield found[0]
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(60)


@pytest.fixture
def cluster(scheduler: str) -> Iterator[Cluster]:
    with open_cluster(scheduler) as cluster:
        cluster._client.wait_for_workers(2, timeout=60)
        yield cluster


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(7):
        soundfile.write(folder / f"{number:03d}.flac", rng.normal(0, 0.1, 40_000), 16_000)
    (folder / "broken.mp3").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def expected(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    pack_serially(audio, folder)
    return contents(folder)


class AtFirst:
    """A display that does something at the first progress in packing, and adds up the steps."""

    def __init__(self, cluster: Cluster, nursed_dies: bool) -> None:
        self.cluster, self.nursed_dies = cluster, nursed_dies
        self.steps, self.packing = 0, False

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        self.packing = description == "Packing"
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        if not self.packing:
            return
        if not self.steps and self.nursed_dies:
            for pid, name in self.cluster._client.run(pid_and_name).values():
                if name == "nursed":
                    os.kill(pid, signal.SIGKILL)
        self.steps += steps


def pid_and_name(dask_worker: Any) -> tuple[int, str]:
    return os.getpid(), dask_worker.name


def keys_of_tasks(dask_scheduler: Any) -> set[str]:
    return {str(transition[0]) for transition in dask_scheduler.transition_log}


@pytest.mark.parametrize("nursed_dies", [False, True])
def test_bytes_are_those_of_a_local_run_even_if_a_worker_is_killed(
    cluster: Cluster, audio: Path, expected: dict[str, bytes], tmp_path: Path, nursed_dies: bool
) -> None:
    display = AtFirst(cluster, nursed_dies)
    pids = {pid for pid, _ in cluster._client.run(pid_and_name).values()}
    pack(load_folder(audio), tmp_path / "set", CONFIG, cluster=cluster, progress=display)
    assert contents(tmp_path / "set") == expected
    assert not (tmp_path / "set" / UNFINISHED).exists()
    assert display.steps == 8
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


@pytest.mark.parametrize("begun_on_cluster", [True, False])
def test_what_one_engine_began_the_other_ends(
    cluster: Cluster, audio: Path, expected: dict[str, bytes], tmp_path: Path, begun_on_cluster: bool
) -> None:
    engines: list[dict[str, Any]] = [{"procs": 1}, {"cluster": cluster}]
    first, second = reversed(engines) if begun_on_cluster else engines
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(audio), tmp_path, CONFIG, **first, progress=StopAfter(4))
    assert not list((tmp_path / UNFINISHED).glob("permit-*"))
    state = unfinished(tmp_path)
    assert state is not None
    assert state.finished < 4
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


@pytest.mark.parametrize(
    ("scheduler", "procs", "words"),
    [
        ("tcp://127.0.0.1:1", None, r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 within 1 s: check"),
        ("127.0.0.1:8786", None, r"is neither local, nor slurm, nor an address such as tcp://node1:8786"),
        ("tcp://127.0.0.1:8786", 3, r"--procs 3 does not go with .*`dask worker --nthreads`"),
        ("slurm", None, r"--scheduler slurm needs --procs N"),
        ("slurm", 2, r"there is no sbatch here"),
        ("tls://127.0.0.1:8786", None, r"distributed\.comm\.tls\.ca-file"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_one_line(
    scheduler: str, procs: int | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=words), open_cluster(scheduler, procs):
        pass


def test_without_dask_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'siamusic-fast\[cluster\]'"),
        open_cluster("local"),
    ):
        pass
