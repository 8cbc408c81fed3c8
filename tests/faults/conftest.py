"""What the tests of promises share: how often to try, audio to pack, and a shard set to damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.shards import verify as module
from tests.faults.promises import promise_of
from tests.faults.tries import PROPERTY, SHARE, Tries
from tests.shards.small import pack_small

MEL = MelConfig(seconds=0.1)


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Tries:
    """The tries of this test: few, or as many as `make faults` asks for."""
    promise = promise_of(request.node.nodeid)
    share = request.config.stash.get(SHARE, None)
    found = Tries(promise.short if share is None else promise.count(share))
    request.node.user_properties.append((PROPERTY, found.counts))
    return found


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 files of noise, a broken one and a duplicate."""
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(folder / f"{number:03d}.flac", rng.normal(0, 0.1, 24_000), 16_000)
    (folder / "broken.mp3").write_text("no audio")
    (folder / "copy.flac").write_bytes((folder / "000.flac").read_bytes())
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder of a shard set of 8 tracks of 0.1 s, two of them without a class, and of its features."""
    shard_set = pack_small(tmp_path)
    estimate_frontend(shard_set, MEL)
    return shard_set.folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process: to start others takes most of a second."""

    def run(function: Callable[..., None], jobs: Any, **_: object) -> None:
        for job in jobs:
            function(job, lambda _: None)

    monkeypatch.setattr(module, "run_in_processes", run)
