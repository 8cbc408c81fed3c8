"""Commands in the environments of containers, of cluster nodes and of old terminals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siamusic_fast.shards.manifest import ShardSet

NAMELESS = "import pwd\ndef no_entry(uid): raise KeyError(uid)\npwd.getpwuid = no_entry\n"
"""What Python starts with for a user who has a number only, as `docker run --user` makes one."""
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
def folder(shard_set: ShardSet, tmp_path: Path) -> Path:
    """A folder with a copy of a shard set named `set`."""
    shutil.copytree(shard_set.folder, tmp_path / "set")
    return tmp_path


def run(environment: str, folder: Path, *words: object) -> str:
    """Run Python in `folder`, with nothing of this environment but where programs are; it has to succeed."""
    if environment == "a user without a name":
        (folder / "sitecustomize.py").write_text(NAMELESS)
    python_path = os.pathsep.join((str(folder), str(Path(__file__).parents[2])))
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": python_path} | ENVIRONMENTS[environment],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return str(ended.stdout)


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
