"""Real processes that leave loaders in the middle, and one that has no DALI: all end as they should."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from siamusic_fast.shards.manifest import ShardSet

SCRIPT = """
import sys, time
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
folder, end = sys.argv[1:]
frontend = Frontend(mel=MelConfig(seconds=1.0), mean=-30.0, std=10.0)
loaders = [
    TwoViewLoader(folder, frontend=frontend, batch_size=4, backend=backend, loader_threads=2)
    for backend in ("dali", "torch")
]
iterators = [iter(loader) for loader in loaders]
for batches in iterators:
    next(batches), next(batches)
print("halfway", flush=True)
if end == "raise":
    raise LookupError("of the script")
while end == "interrupt":
    for loader in loaders:
        for one, other in loader:
            time.sleep(0.01)
"""
WITHOUT_DALI = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "nvidia.dali" or name.startswith("nvidia.dali."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import siamusic_fast
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.recipes import parse_recipe
frontend = Frontend(mel=MelConfig(seconds=1.0), mean=-30.0, std=10.0)
with TwoViewLoader(sys.argv[1], aug="both", frontend=frontend, batch_size=4, backend="torch") as loader:
    print(len(list(loader)))
try:
    TwoViewLoader(sys.argv[1], batch_size=4)
except ConfigError as error:
    print(error)
print("nvidia.dali" in sys.modules)
"""
ENDS = {"leave": 0, "raise": 1, "interrupt": -signal.SIGINT}
"""Exit code of each way to end: Python ends itself by the very signal that interrupts it."""
PATIENCE = 60.0
"""Seconds in which such a process starts on a machine that is busy with others."""
SECONDS = 10.0
"""In which it ends."""


class Running:
    """A script that has been started, and its output from "halfway" on."""

    def __init__(self, script: str, *words: object) -> None:
        command = [sys.executable, "-c", script, *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self) -> tuple[int, str, str]:
        """Return exit code, output and errors; fail if it does not end."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


@pytest.fixture(scope="module")
def running(numbered: ShardSet) -> Iterator[dict[str, Running]]:
    """All scripts at once: most of their time is that of their imports."""
    started = {end: Running(SCRIPT, numbered.folder, end) for end in ENDS}
    yield started
    for script in started.values():
        script.process.kill()
        script.process.communicate()


@pytest.mark.parametrize("end", ENDS)
def test_a_process_with_loaders_of_both_engines_ends_in_the_middle_of_their_epochs(
    running: dict[str, Running], end: str
) -> None:
    script = running[end]
    assert script.process.stdout is not None
    assert script.process.stdout.readline() == "halfway\n"
    began = time.monotonic()
    if end == "interrupt":
        time.sleep(0.3)
        script.process.send_signal(signal.SIGINT)
    code, output, errors = script.finish()
    assert time.monotonic() - began < SECONDS
    assert (code, output) == (ENDS[end], "")
    last = {"leave": [], "raise": ["LookupError: of the script"], "interrupt": ["KeyboardInterrupt"]}[end]
    assert errors.splitlines()[-1:] == last


def test_the_torch_backend_works_where_there_is_no_dali_and_the_other_says_what_to_do(
    numbered: ShardSet,
) -> None:
    code, output, errors = Running(WITHOUT_DALI, numbered.folder).finish()
    assert (code, errors) == (0, "")
    batches, refusal, imported = output.splitlines()
    assert (batches, imported) == ("5", "False")
    assert refusal.startswith(
        "backend = 'dali', and DALI is not installed: `pip install nvidia-dali-cuda120`"
    )
    assert "--backend torch" in refusal
