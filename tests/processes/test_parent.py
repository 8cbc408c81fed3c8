import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLOW_TO_IMPORT = """
import os, pathlib, time
if os.environ["PROGRAM"] != str(os.getpid()):
    pathlib.Path("child").write_text(str(os.getpid()))
    time.sleep(60)
def work(job, count): pass
"""
PROGRAM = """
import os
from siamusic_fast.processes.pool import run_in_processes
if __name__ == "__main__":
    os.environ["PROGRAM"] = str(os.getpid())
    import slow
    run_in_processes(slow.work, [1], procs=1, counters=1, on_counts=print)
"""


def test_a_worker_that_still_imports_its_function_ends_with_its_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_TO_IMPORT)
    (tmp_path / "program.py").write_text(PROGRAM)
    child = tmp_path / "child"
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path) as parent:
        try:
            wait_until(lambda: child.exists() and child.read_text() != "")
        finally:
            parent.kill()
    wait_until(lambda: not runs(int(child.read_text())))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
