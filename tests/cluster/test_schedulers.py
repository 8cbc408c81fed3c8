"""Schedulers that are found, secured, asked for by SLURM, wrong, or gone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import dask_jobqueue  # noqa: F401 - whose defaults `dask.config.set` may not undo
import pytest

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes import cluster as cluster_module
from siamusic_fast.processes.cluster import open_cluster
from siamusic_fast.shards.pack import pack
from tests.cluster.workers import ROOT, AtStep, started
from tests.shards.killing import CONFIG, contents, pack_serially

_SBATCH = """#!/bin/sh
# sbatch of SLURM, as far as it goes here: starts the job script in a session of its own, and says its number.
for script; do :; done
cp "$script" "$JOBS/$$.sh"
setsid sh "$JOBS/$$.sh" > "$JOBS/$$.log" 2>&1 < /dev/null &
echo $! >> "$JOBS/submitted"
echo "Submitted batch job $!"
"""
_SCANCEL = """#!/bin/sh
echo $1 >> "$JOBS/canceled"
kill -- -$1
"""
_REFUSED = """#!/bin/sh
echo "sbatch: error: invalid partition specified: nosuch" >&2
exit 1
"""


@pytest.fixture(scope="module")
def expected(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    pack_serially(audio, folder)
    return contents(folder)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_tls_needs_the_certificate_and_gives_the_same_bytes(
    audio: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=dask -keyout {key} -out {cert}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    security = (
        "--tls-ca-file",
        str(cert),
        "--tls-cert",
        str(cert),
        "--tls-key",
        str(key),
        "--protocol",
        "tls",
    )
    settings = {"ca-file": str(cert), "client.cert": str(cert), "client.key": str(key)}
    with started(tmp_path, "plain", security=security) as (address, _):
        assert address.startswith("tls://")
        with (
            dask.config.set({f"distributed.comm.tls.{name}": value for name, value in settings.items()}),
            open_cluster(address) as cluster,
        ):
            cluster._client.wait_for_workers(1, timeout=120)
            pack(load_folder(audio), tmp_path / "set", CONFIG, cluster=cluster)
        for wrong in (address, address.replace("tls", "tcp")):
            with pytest.raises(ConfigError, match=rf"{wrong}"), open_cluster(wrong):
                pass
    assert contents(tmp_path / "set") == expected


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which sbatch and scancel, which are on the path, keep what they did."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job = {"cores": 1, "processes": 1, "memory": "1GB", "queue": "cpu", "walltime": "00:10:00"}
    scratch = {"local-directory": str(tmp_path), "scheduler-options": {"dashboard_address": ":0"}}
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in {**job, **scratch}.items()}):
        yield folder


def test_jobs_of_slurm_pack_the_same_bytes_and_are_ended(
    audio: Path, expected: dict[str, bytes], tmp_path: Path, jobs: Path
) -> None:
    with open_cluster("slurm", procs=2) as cluster:
        cluster._client.wait_for_workers(2, timeout=120)
        pack(load_folder(audio), tmp_path / "set", CONFIG, cluster=cluster)
    assert contents(tmp_path / "set") == expected
    submitted = (jobs / "submitted").read_text().split()
    assert len(submitted) == 2
    assert sorted((jobs / "canceled").read_text().split()) == sorted(submitted)
    for script in jobs.glob("*.sh"):
        assert {"#SBATCH -p cpu", "#SBATCH -t 00:10:00"} <= set(script.read_text().splitlines())
    until = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in submitted):
        assert time.monotonic() < until


def test_jobs_that_slurm_refuses_are_one_line(jobs: Path) -> None:
    (jobs / "sbatch").write_text(_REFUSED)
    with (
        pytest.raises(ConfigError, match=r"sbatch refused 2 jobs .*invalid partition specified: nosuch"),
        open_cluster("slurm", procs=2),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_goes_away_ends_the_work_with_one_line_and_another_engine_goes_on(
    audio: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "_ANSWER_SECONDS", 2)
    begun = 0.0
    with started(tmp_path, "plain") as (address, (scheduler, *_)):

        def lose() -> None:
            nonlocal begun
            begun = time.monotonic()
            scheduler.send_signal(number)

        display = AtStep("Packing", 1, lose)
        words = rf"the scheduler at {address} went away: .*the same command goes"
        with open_cluster(address) as cluster:
            cluster._client.wait_for_workers(1, timeout=120)
            with pytest.raises(DataError, match=words):
                pack(load_folder(audio), tmp_path / "set", CONFIG, cluster=cluster, progress=display)
        assert time.monotonic() - begun < 30
        scheduler.kill()
    pack(load_folder(audio), tmp_path / "set", CONFIG, procs=1)
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize(
    ("scheduler", "procs", "words"),
    [
        ("tcp://127.0.0.1:1", None, r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 within 1 s: check"),
        (
            "127.0.0.1:8786",
            None,
            r"is neither local, nor slurm, nor an address: give one such as tcp://node1:8786",
        ),
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
