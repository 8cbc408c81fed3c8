"""Real processes that meet damaged shards, lack DALI, or end in the middle: all of them end, and say why."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.config import MelConfig
from siamusic_fast.folder_lock import is_locked
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack

_PATIENCE = 90.0
"""Seconds after which a process counts as hanging."""
SMALL = ("--backbone", "resnet18", "--seconds", "0.5", "--batch-size", "4", "--knn-every", "0", "--quiet")


def python(*words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with `words`; fail if it does not end."""
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=_PATIENCE, check=False
    )


@pytest.fixture
def damage(fma_corpus: Path, tmp_path: Path) -> Callable[[int], ShardSet]:
    """Return a function that makes a shard set of flac whose training tracks, from one on, are destroyed.

    Its features were estimated before, so that it is training that meets them.
    """

    def damaged(first: int) -> ShardSet:
        config = PackConfig(tracks_per_shard=8, codec="flac")
        shard_set = pack(load_fma(fma_corpus), tmp_path / "shards", config, procs=1)
        estimate_frontend(shard_set, MelConfig(seconds=0.5))
        tracks = open_tracks(shard_set, ["training"])
        for track in range(first, len(tracks)):
            with tracks.path(track).open("r+b") as file:
                file.seek(int(tracks.offset[track]))
                file.write(bytes(int(tracks.size[track])))
        return shard_set

    return damaged


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("backend", "procs", "first"),
    [
        pytest.param("torch", 1, 8, id="one process"),
        pytest.param("torch", 2, 23, id="one of two processes"),  # the last track is met by one of them
        pytest.param("torch", 2, 0, id="both processes", marks=slow),
        pytest.param("dali", 1, 8, id="dali", marks=slow),
        pytest.param("dali", 2, 23, id="dali, one of two processes", marks=slow),
    ],
)
def test_a_track_that_cannot_be_read_ends_pretraining_with_one_line(
    damage: Callable[[int], ShardSet], tmp_path: Path, backend: str, procs: int, first: int
) -> None:
    shard_set, run = damage(first), tmp_path / "run"
    world = ("--backend", backend, "--gpus", 0, "--procs", procs, "--out", run)
    ended = python("-m", "siamusic_fast", "pretrain", "--data", shard_set.folder, *world, *SMALL)
    [line] = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert line.startswith("error: ")
    assert f"`siamusic-fast verify {shard_set.folder}`" in line
    assert not is_locked(run)
    assert _processes_with(run) == []


@pytest.mark.parametrize(("last_line", "code"), [("", 0), ("raise LookupError", 1)])
def test_a_script_that_leaves_its_loader_open_ends(
    shard_set: ShardSet, tmp_path: Path, last_line: str, code: int
) -> None:
    (tmp_path / "script.py").write_text(
        "from siamusic_fast.pipelines.loaders import TwoViewLoader\n"
        f"data = {str(shard_set.folder)!r}\n"
        "loader = TwoViewLoader(data, batch_size=4, backend='torch', loader_threads=2)\n"
        "views = next(iter(loader))\n"
        f"{last_line}\n"
    )
    ended = python(tmp_path / "script.py")
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1:] == (["LookupError"] if code else [])


def test_the_whole_way_needs_no_dali(shard_set: ShardSet, tmp_path: Path) -> None:
    run, data = tmp_path / "run", ("--data", str(shard_set.folder), "--gpus", "0", "--quiet")
    torch = (*data, "--backend", "torch")
    small = ("--epochs", "1", "--batch-size", "6")
    commands = (
        ("pretrain", *data, *small, "--backbone", "resnet18", "--seconds", "0.5", "--out", str(run)),
        ("pretrain", *torch, *small, "--backbone", "resnet18", "--seconds", "0.5", "--out", str(run)),
        ("finetune", str(run), *torch, *small, "--freeze"),
        ("evaluate", str(run), *torch),
        ("probe", str(run), *torch),
        ("preview", "--data", str(shard_set.folder), "--tracks", "1", "--out", str(tmp_path / "views.png")),
    )
    (tmp_path / "script.py").write_text(
        "import json, sys\n"
        "sys.modules['nvidia.dali'] = None\n"
        "from siamusic_fast.cli import main\n"
        f"for words in json.loads({json.dumps(commands)!r}):\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as end:\n"
        "        print(words[0], end.code)\n"
    )
    ended = python(tmp_path / "script.py")
    ends = [line for line in ended.stdout.splitlines() if line.split()[0] in {words[0] for words in commands}]
    assert ends == ["pretrain 1", "pretrain 0", "finetune 0", "evaluate 0", "probe 0", "preview 0"]
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: backend = 'dali', and DALI is not installed")
    assert "--backend torch" in line


def _processes_with(run: Path) -> list[str]:
    """Return the processes besides this one that have a file of `run` open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if run in link.readlink().parents and link.parts[2] != str(os.getpid()):
                found.append(link.parts[2])
        except OSError:  # it ended meanwhile
            continue
    return found
