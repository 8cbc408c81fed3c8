import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siamusic_fast import folder_lock as lock
from siamusic_fast.errors import DataError
from siamusic_fast.folder_lock import FolderLock, is_locked


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_TIMEOUT", 0.0)


def test_a_folder_has_one_job_at_a_time(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with FolderLock() as first, FolderLock() as second:
        first.take(tmp_path)
        assert is_locked(tmp_path)
        with pytest.raises(DataError, match=r"is in use by a job that is training: .* --out"):
            second.take(tmp_path)
    assert not is_locked(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    assert not is_locked(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")],
    ids=["FIFO", "folder", "device"],
)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".lock")
    with (
        FolderLock() as held,
        pytest.raises(DataError, match=r"\.lock is no regular file, .*: remove it, or"),
    ):
        held.take(tmp_path)
    assert not is_locked(tmp_path)


def test_a_process_that_is_killed_leaves_no_lock_not_even_with_a_forked_worker(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; "
        "from siamusic_fast.folder_lock import FolderLock; "
        "held = FolderLock(); held.take(Path(sys.argv[1])); "
        "os.fork() or print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert is_locked(tmp_path)
    process.kill()
    process.wait(timeout=30)
    assert not is_locked(tmp_path)
    os.kill(child, 9)
    process.stdout.close()
