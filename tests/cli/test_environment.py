"""Commands in the environments of containers, of cluster nodes and of old terminals."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from siamusic_fast.shards.manifest import ShardSet

NAMELESS = 54_321
"""Number of a user without an entry in /etc/passwd."""
_READS_ALL = "+dac_read_search"
"""Lets that user read a Python in a folder of root's; it writes no more than others do."""
AS_NAMELESS = (
    *("setpriv", f"--reuid={NAMELESS}", f"--regid={NAMELESS}", "--clear-groups"),
    *(f"--inh-caps={_READS_ALL}", f"--ambient-caps={_READS_ALL}"),
)
"""Starts a program as that user, as `docker run --user` does; it takes root."""
SITE = "import pwd\ndef no_entry(uid): raise KeyError(uid)\npwd.getpwuid = no_entry\n"
"""What Python starts with where that is not allowed: nobody has an entry then."""
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "a user without a name": {"HOME": "/nonexistent"},
    "no HOME": {},
    "a read-only HOME": {"HOME": "/sys"},  # where not even root can write a file
    "no TMPDIR": {"TMPDIR": "/nonexistent"},
    "an odd TZ": {"TZ": "Nowhere/At_All"},
    "the locale C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "a latin-1 terminal": {"PYTHONIOENCODING": "latin-1"},
    "an ASCII terminal": {"PYTHONIOENCODING": "ascii"},
}


@pytest.fixture
def folder(shard_set: ShardSet) -> Iterator[Path]:
    """A folder that anybody may use, with a copy of a shard set named `set`."""
    with tempfile.TemporaryDirectory(prefix="environment-") as name:
        Path(name).chmod(0o777)
        shutil.copytree(shard_set.folder, Path(name, "set"))
        yield Path(name)


def run(environment: str, folder: Path, *words: object) -> str:
    """Run Python in `folder`, with nothing of this environment but where programs are; it has to succeed."""
    program = [sys.executable, *map(str, words)]
    if environment == "a user without a name":
        if subprocess.run([*AS_NAMELESS, sys.executable, "-c", ""], check=False).returncode == 0:
            program = [*AS_NAMELESS, *program]
        else:
            (folder / "sitecustomize.py").write_text(SITE)
    python_path = os.pathsep.join((str(folder), str(Path(__file__).parents[2])))
    ended = subprocess.run(
        program,
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
def test_the_whole_demo_passes_in_every_environment(folder: Path, environment: str) -> None:
    words = ("demo", "--quick", "--device", "cpu", "--json")
    result = json.loads(run(environment, folder, "-m", "siamusic_fast", *words))
    assert result["test_tracks"] > 0
    assert (folder / result["report"]).is_file()
