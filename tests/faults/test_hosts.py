"""Training on two hosts, two processes on each, whose cable can be cut."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from siamusic_fast.models import checkpoint
from siamusic_fast.shards.manifest import ShardSet
from tests.faults.hosts import Host, two_hosts
from tests.faults.processes import moment
from tests.processes.test_loopback import descendants, until
from tests.processes.test_loopback import runs as is_running
from tests.training.test_pretrain import assert_same_weights

pytestmark = [pytest.mark.faults, pytest.mark.slow]

PROGRAM = """
import itertools, os, sys, time
from pathlib import Path

from siamusic_fast.cli import main
from siamusic_fast.models import networks
from siamusic_fast.pipelines.loaders import TwoViewLoader
from tests.training.networks import TinyEncoder

networks.encoder = TinyEncoder
batches, give = itertools.count(1), TwoViewLoader._output
ready = Path(sys.argv[1])


def give_when_ready(loader, batch, views):
    if next(batches) == 5:
        ready.with_name(f"waits-{os.environ['RANK']}").touch()
        while not ready.exists():
            time.sleep(0.05)
    return give(loader, batch, views)


TwoViewLoader._output = give_when_ready
if __name__ == "__main__":
    main(sys.argv[2:])
"""
"""Is `siamusic-fast` with a tiny encoder; the file that its first argument names lets it begin step 5."""
SETTINGS = (
    *("--gpus", "0", "--backend", "torch", "--seconds", "0.5", "--epochs", "4", "--batch-size", "2"),
    *("--projection-dim", "32", "--knn-every", "0", "--checkpoint-minutes", "1e-9", "--quiet"),
)
"""12 steps: 3 in an epoch of 24 tracks by 4 processes, and a checkpoint after each."""
_TIMEOUT = 20
"""Seconds that processes wait for each other; at their start, too, when some come later."""
_PATIENCE = 400.0
"""Seconds after which a process counts as hanging."""


class Job:
    """A pre-training as torchrun starts it on two hosts."""

    def __init__(
        self, hosts: Sequence[Host], folder: Path, shard_set: ShardSet, *, max_restarts: int = 0
    ) -> None:
        self.run, self.ready = folder / "run", folder / "ready"
        self.logs = [folder / f"{host.name}.log" for host in hosts]
        self.nodes = []
        words = (*_arguments(shard_set, self.run), "--timeout", str(_TIMEOUT))
        for number, (host, log) in enumerate(zip(hosts, self.logs, strict=True)):
            torchrun = host.command(
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint={hosts[0].address}:29500"),
                # Hosts with names that can be looked up need neither of these two.
                *(f"--rdzv-conf=is_host={int(number == 0)}", f"--local-addr={host.address}"),
                *(f"--max-restarts={max_restarts}", _program(folder), self.ready, *words),
            )
            environment = {**os.environ, **_ENVIRONMENT, "GLOO_SOCKET_IFNAME": host.interface}
            with log.open("wb") as file:
                self.nodes.append(subprocess.Popen(torchrun, env=environment, stdout=file, stderr=file))

    def wait_until_it_waits(self) -> None:
        """Return when all processes have done four steps and wait for `ready`."""
        until(lambda: len(list(self.ready.parent.glob("waits-*"))) == 4 or self.ended, _PATIENCE)
        assert not self.ended, self.output

    @property
    def ended(self) -> bool:
        return any(node.poll() is not None for node in self.nodes)

    @property
    def output(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def finish(self) -> list[int]:
        """Return the exit codes of torchrun on both hosts; fail if one hangs."""
        return [node.wait(_PATIENCE) for node in self.nodes]

    def errors(self, node: int) -> list[str]:
        return [line for line in self.logs[node].read_text().splitlines() if line.startswith("error: ")]


_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def _program(folder: Path) -> Path:
    path = folder / "program.py"
    path.write_text(PROGRAM)
    return path


def _arguments(shard_set: ShardSet, run: Path) -> tuple[str, ...]:
    return ("pretrain", "--data", str(shard_set.folder), *SETTINGS, "--out", str(run))


@contextmanager
def started(hosts: Sequence[Host], folder: Path, shard_set: ShardSet, max_restarts: int = 0) -> Iterator[Job]:
    """Start a job, and leave nothing of it behind."""
    job = Job(hosts, folder, shard_set, max_restarts=max_restarts)
    processes = set[int]()
    try:
        job.wait_until_it_waits()
        processes = {pid for node in job.nodes for pid in descendants(node.pid)}
        assert len(processes) >= 6  # torchrun and two of training on each
        yield job
        until(lambda: not any(is_running(pid) for pid in processes), 30)
    finally:
        for node in job.nodes:
            node.kill()
            node.wait()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def whole(hosts: tuple[Host, Host], shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of four processes of this machine."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "ready").touch()
    words = (_program(folder), folder / "ready", *_arguments(shard_set, folder / "run"), "--procs", "4")
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert _step(folder / "run") == 12
    return folder / "run"


def _step(run: Path) -> int:
    step: int = checkpoint.load(run / "checkpoint.pt", "pretraining")["step"]
    return step


def test_two_hosts_learn_what_as_many_processes_of_one_machine_learn(
    hosts: tuple[Host, Host], whole: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    with started(hosts, tmp_path, shard_set) as job:
        job.ready.touch()
        assert job.finish() == [0, 0], job.output
    assert_same_weights(whole, job.run)


def test_a_cable_that_is_mended_within_the_timeout_costs_time_alone(
    hosts: tuple[Host, Host], whole: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    second = hosts[1]
    with started(hosts, tmp_path, shard_set) as job:
        second.cut()
        try:
            job.ready.touch()
            moment(3)
        finally:
            second.mend()
        assert job.finish() == [0, 0], job.output
    assert_same_weights(whole, job.run)


def test_a_cut_cable_ends_the_processes_of_both_hosts_with_an_error_within_the_timeout(
    hosts: tuple[Host, Host], shard_set: ShardSet, tmp_path: Path
) -> None:
    second = hosts[1]
    second.retry(7)  # torchrun itself waits for the other one as long as the kernel does, thus 51 s
    with started(hosts, tmp_path, shard_set) as job:
        second.cut()
        try:
            job.ready.touch()
            assert job.finish() == [1, 1], job.output
        finally:
            second.mend()
            second.retry(15)
    for node in range(2):
        words = f"waited {_TIMEOUT} s for another process in vain: it hangs, its machine is down, or the net"
        assert any(words in line for line in job.errors(node)), job.output
        assert len(job.errors(node)) <= 2
    assert _step(job.run) == 4


def test_when_a_cut_cable_is_mended_all_go_on_from_the_checkpoint_to_the_same_weights(
    hosts: tuple[Host, Host], whole: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    second = hosts[1]
    with started(hosts, tmp_path, shard_set, max_restarts=1) as job:
        second.cut()
        try:
            job.ready.touch()
            until(lambda: all(job.errors(node) for node in range(2)), _PATIENCE)
        finally:
            second.mend()
        assert job.finish() == [0, 0], job.output
    assert_same_weights(whole, job.run)
