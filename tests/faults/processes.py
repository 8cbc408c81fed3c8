"""Real processes for tests of promises: to be killed, stopped, and looked for afterwards.

Each is forked from a server that has imported torch and DALI, as every import takes seconds. A process has a
session of its own, so that a signal can be sent to it alone or to all that it started.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from siamusic_fast.cli import main
from siamusic_fast.config import PretrainConfig
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from tests.processes.test_loopback import status, until

_PATIENCE = 300.0
"""Seconds after which a process counts as hanging."""
_PRELOADED = (
    "siamusic_fast.cli.shards",
    "siamusic_fast.pipelines.dali.engine",
    "tests.training.test_pretrain",
)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([*_PRELOADED, __name__])


def start(function: Callable[..., object], *arguments: object, log: Path, **environment: str) -> BaseProcess:
    """Call `function` in a new process, with more environment variables; what it prints goes to `log`."""
    process = _SERVER.Process(target=_run, args=(function, arguments, log, environment))
    process.start()
    return process


def _run(
    function: Callable[..., object], arguments: Sequence[object], log: Path, environment: dict[str, str]
) -> None:
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    tempfile.tempdir = None
    atexit._clear()  # of the server
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # as a program does at its end, and a process of `multiprocessing` does not


def command(*words: object) -> None:
    """Be the program `siamusic-fast` with `words`."""
    main([str(word) for word in words])


def typed_command(*words: object) -> None:
    """Become `python -m siamusic_fast` with `words`, as a user starts it."""
    os.execv(sys.executable, [sys.executable, "-m", "siamusic_fast", *map(str, words)])


def train(
    config: PretrainConfig, shard_set: ShardSet, run: Path, procs: int | None, resume: bool = False
) -> None:
    """Pre-train a tiny encoder in `procs` processes; stopped, end with the exit code of the signal."""
    try:
        launch(_TinyRun(config, shard_set, run, resume), gpus=0, procs=procs)
    except Stopped as stop:
        sys.exit(stop.exit_code)


def torchrun(config: PretrainConfig, data: Path, run: Path, max_restarts: int) -> None:
    """Become torchrun with two processes that do what `train` does, and go on when they are started again."""
    program = run.with_name("program.py")
    program.write_text(
        "from pathlib import Path\n"
        "from siamusic_fast.config import MelConfig, PretrainConfig\n"
        "from siamusic_fast.shards.manifest import read_manifest\n"
        "from tests.faults.processes import train\n"
        f"train({config!r}, read_manifest(Path({str(data)!r})), Path({str(run)!r}), procs=None)\n"
    )
    words = ["--standalone", "--nproc-per-node=2", f"--max-restarts={max_restarts}", str(program)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    os.execve(sys.executable, [sys.executable, "-m", "torch.distributed.run", *words], here)


class _TinyRun:
    def __init__(self, config: PretrainConfig, shard_set: ShardSet, run: Path, resume: bool) -> None:
        self.arguments, self.resume = (config, shard_set, run), resume

    def __call__(self, *, world: World) -> None:
        from tests.training.test_pretrain import tiny_run  # which imports pytest and torch

        tiny_run(*self.arguments, world=world, resume=self.resume)


def finish(process: BaseProcess) -> int:
    """Return the exit code of `process`, negative for a signal; fail if it does not end."""
    process.join(_PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def succeed(process: BaseProcess, log: Path) -> None:
    assert finish(process) == 0, log.read_text()


def session(process: BaseProcess) -> list[int]:
    """Return the processes that run in the session of `process`: itself and all that it started."""
    words = {int(path.name): status(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return [pid for pid, found in words.items() if found and found[0] != "Z" and int(found[3]) == process.pid]


def send(process: BaseProcess, number: int, whom: str) -> None:
    """Send a signal to `process` alone ("one") or to all of its session that are in its group ("group")."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        (os.killpg if whom == "group" else os.kill)(process.pid, number)


def kill(process: BaseProcess, whom: str) -> None:
    """Kill `process` alone, all of its group, or the last that it started ("child"), if there is one."""
    if whom != "child":
        send(process, signal.SIGKILL, whom)
    elif others := [pid for pid in session(process) if pid != process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(max(others), signal.SIGKILL)


def end(process: BaseProcess, seconds: float) -> None:
    """Wait until `process` and all that it started have ended; fail, and kill them, after `seconds`."""
    try:
        until(lambda: not session(process), seconds)
    finally:
        for pid in session(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.join()


def wait_for(condition: Callable[[], Any], process: BaseProcess) -> None:
    """Return when `condition` holds or `process` has ended."""
    until(lambda: bool(condition()) or not process.is_alive(), _PATIENCE)


def moment(seconds: float) -> None:
    """Let others run for `seconds`, which tests draw to meet each moment of their work."""
    time.sleep(seconds)
