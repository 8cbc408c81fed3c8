"""What processes that train together on one machine show to others: nothing. And how they end."""

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siamusic_fast.processes.loopback import private_folder
from siamusic_fast.processes.world import World
from tests.processes.test_launch import train

_LISTENS = "0A"
"""State of a socket in /proc/net/tcp."""
_PATIENCE = 120.0
"""Seconds that a test waits for processes to start."""
_END_WITHIN = 10.0
"""Seconds in which processes end when their launcher was killed."""
_IMPORT_WITHIN = 20.0
"""Seconds that processes which still import torch may take to do so, on a busy machine, until they see it."""


def train_until_told(folder: Path, *, world: World) -> None:
    """Train until `folder` has a file `enough`; where that helps, be killed once as the second process."""
    train(world=world)
    if world.rank == 1 and world.restarts == 0 and world.id:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"trains-{world.rank}").touch()
    while not all(world.gather((folder / "enough").exists())):
        train(world=world)


@contextlib.contextmanager
def launcher(
    folder: Path, options: str = "procs=2, max_restarts=1", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Launch `train_until_told` with `options`; temporary files go to `tmp` in `folder`."""
    (folder / "tmp").mkdir(exist_ok=True)
    program = folder / "program.py"
    program.write_text(
        "import functools\n"
        "from pathlib import Path\n"
        "from siamusic_fast.processes.launch import launch\n"
        "from tests.processes.test_loopback import train_until_told\n"
        "if __name__ == '__main__':\n"
        f"    function = functools.partial(train_until_told, Path({str(folder)!r}))\n"
        f"    launch(function, gpus=0, {options})\n"
    )
    ours = {"PYTHONPATH": str(Path.cwd()), "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        [sys.executable, program], env={**os.environ, **ours, **environment}, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended, as they are to
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], bool], patience: float = _PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status(pid: int) -> list[str]:
    """Return what /proc says of a process from its state on; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def runs(pid: int) -> bool:
    return status(pid)[:1] not in ([], ["Z"])


def descendants(ancestor: int) -> list[int]:
    """Return the process `ancestor` and those that it, or they, started and that run."""
    parents = {
        int(path.name): int(words[1])
        for path in Path("/proc").glob("[0-9]*")
        if (words := status(int(path.name))) and words[0] != "Z"
    }
    found = [ancestor] if ancestor in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process listens, as the kernel tells them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
        except OSError:  # closed meanwhile
            continue
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[9] in inodes:
                found.add(_address(words[1].partition(":")[0]))
    return found


def _address(kernels: str) -> str:
    """Return an address of /proc/net, which is in words of 32 bits, each with its first byte last."""
    words = bytes.fromhex(kernels)
    return str(ipaddress.ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))))


def another_interface() -> str:
    """Return the name of a network interface that others can reach; loopback if there is none."""
    return next((name for _, name in socket.if_nameindex() if name.startswith(("e", "w"))), "lo")


def test_processes_of_one_machine_listen_on_its_loopback_only_and_meet_in_a_private_folder(
    tmp_path: Path,
) -> None:
    seen: dict[int, set[str]] = {}
    modes: set[int] = set()

    def look() -> bool:
        for pid in descendants(process.pid):
            seen.setdefault(pid, set()).update(listening(pid))
        modes.update(path.stat().st_mode & 0o777 for path in (tmp_path / "tmp").iterdir())
        return all((tmp_path / f"trains-{rank}").exists() for rank in (0, 1))

    # Such a setting is for jobs of several machines.
    with launcher(tmp_path, GLOO_SOCKET_IFNAME=another_interface()) as process:
        until(look)
        for _ in range(20):
            look()
        (tmp_path / "enough").touch()
        assert process.wait(_PATIENCE) == 0
    assert set().union(*seen.values()) <= {"127.0.0.1", "::1"}
    assert sum(map(bool, seen.values())) >= 4  # two processes, started twice
    assert modes == {0o700}
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_tasks_of_slurm_on_one_node_listen_on_its_loopback_only(tmp_path: Path) -> None:
    environment = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_NODELIST": "a-name-that-nobody-resolves",
        "GLOO_SOCKET_IFNAME": another_interface(),
    }
    with contextlib.ExitStack() as stack:
        tasks = [
            stack.enter_context(launcher(tmp_path, "", **environment, SLURM_PROCID=rank, SLURM_LOCALID=rank))
            for rank in ("0", "1")
        ]
        seen: dict[int, set[str]] = {task.pid: set() for task in tasks}

        def look() -> bool:
            for pid, addresses in seen.items():
                addresses.update(listening(pid))
            return all((tmp_path / f"trains-{rank}").exists() for rank in (0, 1))

        until(look)
        (tmp_path / "enough").touch()
        assert [task.wait(_PATIENCE) for task in tasks] == [0, 0]
    assert list(seen.values()) == [{"127.0.0.1"}, {"127.0.0.1"}]


def test_temporary_files_of_a_launcher_go_to_its_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder() as ours:
        assert list(tmp_path.iterdir()) == [ours]
        assert ours.stat().st_mode & 0o777 == 0o700
        assert Path(tempfile.gettempdir()) == ours
    assert list(tmp_path.iterdir()) == []
    assert Path(tempfile.gettempdir()) == tmp_path


@pytest.mark.parametrize(
    "moment",
    [
        "processes start",
        pytest.param("processes import", marks=pytest.mark.slow),
        pytest.param("processes meet", marks=pytest.mark.slow),
        pytest.param("processes train", marks=pytest.mark.slow),
    ],
)
def test_all_processes_end_when_their_launcher_is_killed(tmp_path: Path, moment: str) -> None:
    def has_come() -> bool:
        if moment == "processes train":
            return (tmp_path / "trains-1").exists()
        if moment == "processes meet":
            return any((tmp_path / "tmp").glob("*/store-0"))
        return len(descendants(process.pid)) > 3  # itself, what tracks its semaphores, and two processes

    with launcher(tmp_path) as process:
        until(has_come)
        if moment == "processes import":
            time.sleep(1)
        world = descendants(process.pid)
        process.kill()
        begun = moment in ("processes meet", "processes train")
        until(lambda: not any(map(runs, world)), _END_WITHIN + (0 if begun else _IMPORT_WITHIN))
