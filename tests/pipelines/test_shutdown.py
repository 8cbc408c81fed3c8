"""What loaders leave behind: no threads, no open files, no memory."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.both_backends import BACKENDS, labelled, two_views, whole_tracks

SMALL: dict[str, Any] = {"mel": MelConfig(seconds=0.25), "batch_size": 4}
WARM_UP = 1_000
"""Batches after which all buffers have grown to the largest batch they meet."""
MEGABYTES = 4.0
"""By how much the process may grow from then on: less than 1 kB for each of the next 9,000 batches."""


def threads_and_files() -> tuple[int, int]:
    gc.collect()
    return _entries("task"), _entries("fd")


def resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loaders", [9, pytest.param(30, marks=pytest.mark.slow)])
def test_closed_loaders_leave_no_thread_and_no_open_file(
    numbered: ShardSet, numbered_flac: ShardSet, backend: str, loaders: int
) -> None:
    def use(shard_set: ShardSet, kind: Any, **options: Any) -> None:
        with kind(backend, shard_set, threads=2, **SMALL, **options) as loader:
            next(iter(loader))
            loader.load_state_dict(loader.state_dict())
            next(iter(loader))

    def use_three() -> None:
        use(numbered, two_views, recipe="audio")
        use(numbered_flac, labelled, labels=0.5)
        use(numbered, whole_tracks)

    use_three()  # libraries start threads and open files of their own, once
    before = threads_and_files()
    for _ in range(loaders // 3):
        use_three()
    assert threads_and_files() == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_the_torch_backend_end_with_their_loader(numbered: ShardSet) -> None:
    def use() -> None:
        with two_views("torch", numbered, workers=2, **SMALL) as loader:
            next(iter(loader))

    use()
    before, children = threads_and_files(), _children()
    for _ in range(3):
        use()
    assert threads_and_files() == before
    assert _children() == children


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_iteration_left_early_holds_nothing_once_its_loader_is_closed(
    numbered: ShardSet, backend: str
) -> None:
    two_views(backend, numbered, **SMALL).close()
    before = threads_and_files()
    loader = two_views(backend, numbered, **SMALL)
    batches = iter(loader)
    kept = [next(batches) for _ in range(3)]
    copies = [view.clone() for views in kept for view in views]
    loader.close()
    del batches
    assert all((a == b).all() for a, b in zip((v for views in kept for v in views), copies, strict=True))
    del kept
    assert threads_and_files() == before


@pytest.mark.parametrize("recipe", ["image", pytest.param("audio", marks=pytest.mark.slow)])
def test_five_hundred_batches_take_no_more_memory_than_some(numbered: ShardSet, recipe: str) -> None:
    assert growth(numbered, recipe, warm_up=100, batches=500) < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_ten_thousand_batches_take_no_more_memory_than_the_first_thousand(
    numbered: ShardSet, recipe: str
) -> None:
    assert growth(numbered, recipe, warm_up=WARM_UP, batches=10_000) < MEGABYTES


def growth(shard_set: ShardSet, recipe: str, *, warm_up: int, batches: int) -> float:
    """Return by how many megabytes the process grows from batch `warm_up` to batch `batches`."""
    with two_views("dali", shard_set, recipe=recipe, threads=1, **SMALL) as loader:
        done = 0
        start = 0.0
        while done < batches:
            for _ in loader:
                done += 1
                if done == warm_up:
                    start = resident_megabytes()
                if done == batches:
                    break
        return resident_megabytes() - start


def _children() -> int:
    return sum(len(file.read_text().split()) for file in Path("/proc/self/task").glob("*/children"))


def _entries(kind: str) -> int:
    return sum(1 for _ in Path("/proc/self", kind).iterdir())
