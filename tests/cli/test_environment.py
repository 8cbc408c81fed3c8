"""Commands in the environments of containers, of cluster nodes and of old terminals."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.shards.manifest import ShardSet

NAMELESS: dict[str, Any] = {"user": 54_321, "group": 54_321, "extra_groups": []}
"""A user with a number only, as `docker run --user` makes one."""
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a user without a name": {"HOME": "/nonexistent"},
    "no HOME": {},
    "no TMPDIR": {"TMPDIR": "/nonexistent"},
    "an odd TZ": {"TZ": "Nowhere/At_All"},
    "the locale C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "a latin-1 terminal": {"PYTHONIOENCODING": "latin-1"},
    "an ASCII terminal": {"PYTHONIOENCODING": "ascii"},
}
SMALL = ("--gpus", 0, "--epochs", 1, "--batch-size", 6)


@pytest.fixture
def folder(shard_set: ShardSet) -> Iterator[Path]:
    """A folder that every user may write to, with a copy of a shard set named `set`."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(shard_set.folder, Path(name) / "set")
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o777)
        yield Path(name)


def run(environment: str, folder: Path, *words: object) -> str:
    """Run Python in `folder`, with nothing of this environment but where programs are; it has to succeed."""
    user = NAMELESS if environment == "a user without a name" else {}
    if user and os.getuid() != 0:
        pytest.skip("only root can become another user")
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    checkout = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        env={"PYTHONPATH": checkout} | keep | ENVIRONMENTS[environment],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        **user,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.parametrize("environment", ["a latin-1 terminal", "an ASCII terminal", "the locale C"])
def test_a_shard_set_is_shown_on_every_terminal(folder: Path, environment: str) -> None:
    shown = run(environment, folder, "-m", "siamusic_fast", "inspect", "set")
    assert "Electronic" in shown


def test_a_user_without_a_name_can_train(folder: Path) -> None:
    run("a user without a name", folder, "-c", "import siamusic_fast, torch._inductor.config")


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_whole_way_passes_in_every_environment(folder: Path, environment: str) -> None:
    for words in (
        ("pretrain", "--data", "set", *SMALL, "--backbone", "resnet18", "--seconds", 0.5, "--out", "run"),
        ("finetune", "run", *SMALL, "--freeze"),
        ("evaluate", "run", "--gpus", 0),
        ("probe", "run", "--gpus", 0),
        ("verify", "set"),
        ("preview", "--data", "set", "--tracks", 1, "--out", "views.png"),
    ):
        run(environment, folder, "-m", "siamusic_fast", *words)
