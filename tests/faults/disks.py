"""Small disks that fill up, as root alone can make them."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Have a file system of `size` bytes at `folder`; skip the test where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill(ballast: Path) -> None:
    """Write the file `ballast`, which takes all that its small disk has room for."""
    ballast.write_bytes(bytes(shutil.disk_usage(ballast.parent).free))
    assert shutil.disk_usage(ballast.parent).free == 0
