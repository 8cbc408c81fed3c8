"""A cluster that the tests of a worker of pytest share, and audio for it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.processes.cluster import Cluster, open_cluster
from tests.cluster.workers import started


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers of one thread; a nanny replaces the one that is killed."""
    with started(tmp_path_factory.mktemp("dask"), "plain", "nursed") as (address, _):
        yield address


@pytest.fixture
def cluster(scheduler: str) -> Iterator[Cluster]:
    with open_cluster(scheduler) as cluster:
        cluster._client.wait_for_workers(2, timeout=120)
        yield cluster


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine files of noise and a broken one."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(9):
        soundfile.write(folder / f"{number:03d}.flac", rng.normal(0, 0.1, 40_000), 16_000)
    (folder / "broken.mp3").write_text("no audio")
    return folder
