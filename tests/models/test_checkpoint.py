import errno
import itertools
import math
import os
import pickle
import random
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from siamusic_fast.config import MelConfig, PretrainConfig, dump, load_pretrain
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import atomic_write, open_regular
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.models import checkpoint
from siamusic_fast.models.pretrained import load_pretrained
from siamusic_fast.models.run_files import Checkpoints, new_folder
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.run_folder import RunFolder
from tests.runs import save_run


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = torch.nn.Linear(3, 2)
    checkpoint.save(
        path, "pretraining", {"model": model.state_dict(), "epoch": 3, "ranks": [{"loader": "YQ=="}]}
    )
    loaded = checkpoint.load(path, "pretraining")
    assert loaded.keys() == {"model", "epoch", "ranks"}
    assert (loaded["epoch"], loaded["ranks"]) == (3, [{"loader": "YQ=="}])
    torch.testing.assert_close(loaded["model"]["weight"], model.weight.detach(), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def small_run() -> dict[str, Any]:
    """Return what a checkpoint of a small network and its optimizer holds."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "config": dump(PretrainConfig()),
        "encoder": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ranks": [{"random": torch.get_rng_state(), "loader": "YQ=="}],
    }


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_no_flipped_bit_and_no_cut_is_loaded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.pt"
    checkpoint.save(path, kind, small_run())
    content, rng = path.read_bytes(), random.Random(0)
    everywhere = [rng.randrange(8 * len(content)) for _ in range(400)]
    of_the_last_line = range(8 * (len(content) - 130), 8 * len(content), 3)
    for bit in (*everywhere, *of_the_last_line):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"file\.pt is damaged"):
            checkpoint.load(path, kind)
    for length in (0, 1, 65, len(content) - 1, *(rng.randrange(len(content)) for _ in range(50))):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"file\.pt is damaged"):
            checkpoint.load(path, kind)
    path.write_bytes(content)
    assert checkpoint.load(path, kind).keys() == small_run().keys()


def test_torch_and_sha256sum_read_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    checkpoint.save(path, "classifier", small_run())
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert loaded["format"] == "siamusic-fast classifier"
        torch.testing.assert_close(
            loaded["encoder"], checkpoint.load(path, "classifier")["encoder"], rtol=0, atol=0
        )
    command = f"head -c -65 {shlex.quote(str(path))} | sha256sum"
    found = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    assert path.read_bytes().endswith(f"format 4, sha256 {found.split()[0]}\n".encode())


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "pretraining", {"epoch": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(path, "pretraining", {"epoch": 2, "cannot be pickled": lambda: None})
    assert checkpoint.load(path, "pretraining") == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_disk_that_fails_to_read_is_no_damage_to_go_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (1, 2):
        save_newest(tmp_path, epoch)
    opened = open_regular

    def failing(path: Path, limit: int) -> Any:
        if path.name == "checkpoint.pt":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, limit)

    monkeypatch.setattr("siamusic_fast.models.checkpoint.open_regular", failing)
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be read \(Input/output error\)"):
        Checkpoints(tmp_path).only_previous_is_whole()


def epoch_of(path: Path) -> int:
    epoch: int = checkpoint.load(path, "pretraining")["epoch"]
    return epoch


def save_newest(run: Path, epoch: int) -> None:
    checkpoint.save(run / "checkpoint.pt", "pretraining", {"epoch": epoch}, previous="checkpoint-previous.pt")


def save_best(run: Path, epoch: int) -> None:
    checkpoint.save(run / "best.pt", "pretraining", {"epoch": epoch})
    checkpoint.duplicate(run / "best.pt", "checkpoint.pt", previous="checkpoint-previous.pt")


class Filming:
    """Copies a folder, its hard links as such, before and after every step that changes it."""

    def __init__(self, folder: Path, states: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.states, self.numbers = folder, states, itertools.count()
        states.mkdir()
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "hardlink_to")):
            patch.setattr(owner, name, self.filmed(getattr(owner, name)))

    def filmed(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.copy()
            try:
                return step(*arguments, **options)
            finally:
                self.copy()

        return call

    def copy(self) -> None:
        subprocess.run(["cp", "-a", self.folder, self.states / f"{next(self.numbers):02d}"], check=True)


def refuse_hard_links(path: Path, target: Path) -> None:
    target.stat()
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("save", [save_newest, save_best])
def test_a_kill_at_any_step_of_a_save_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path, int], None], hard_links: bool
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse_hard_links)
    save_best(run, 1)
    save_newest(run, 2)
    with monkeypatch.context() as patch:
        Filming(run, tmp_path / "states", patch)
        save(run, 3)
    states = sorted((tmp_path / "states").iterdir())
    assert len(states) > 8
    for state in states:
        left = "checkpoint-previous.pt" if Checkpoints(state).only_previous_is_whole() else "checkpoint.pt"
        assert left == "checkpoint.pt" or not hard_links
        assert epoch_of(state / left) in (2, 3)
        best = epoch_of(state / "best.pt")
        save_newest(state, 4)
        names = ("best.pt", "checkpoint-previous.pt", "checkpoint.pt")
        assert tuple(sorted(file.name for file in state.iterdir() if file.name != ".best.pt.tmp")) == names
        assert epoch_of(state / "checkpoint.pt") == 4
        assert epoch_of(state / "checkpoint-previous.pt") in (2, 3)
        assert epoch_of(state / "best.pt") == best
    found = {name: epoch_of(run / name) for name in ("checkpoint-previous.pt", "checkpoint.pt", "best.pt")}
    assert list(found.values()) == [2, 3, 3 if save is save_best else 1]


class FullDisk:
    """A file on a disk that takes `room` bytes more."""

    def __init__(self, file: Any, room: int, number: int) -> None:
        self.file, self.room, self.number = file, room, number
        self.fileno = file.fileno

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("room", [0, 100, 2000, 5000])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "your share of the disk is used up: free some space"),
        (errno.EIO, "Input/output error: see to that first"),
    ],
)
def test_a_full_disk_is_said_in_plain_words_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, number: int, words: str
) -> None:
    save_newest(tmp_path, 1)
    save_newest(tmp_path, 2)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    @contextmanager
    def full(path: Path) -> Iterator[FullDisk]:
        with atomic_write(path) as file:
            yield FullDisk(file, room, number)

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    for name in ("checkpoint.pt", "best.pt"):
        with pytest.raises(DataError) as error:
            checkpoint.save(
                tmp_path / name,
                "pretraining",
                small_run(),
                previous="checkpoint-previous.pt",
                remedy="Do this.",
            )
        assert str(error.value) == f"{tmp_path / name} could not be written, {words}. Do this."
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_others_do_not_take_an_older_checkpoint_and_say_how_to_go_back_to_it(tmp_path: Path) -> None:
    run = save_run(tmp_path / "a run", file="checkpoint-previous.pt")
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=r"a run/checkpoint\.pt is damaged, and the checkpoint before"
    ) as error:
        load_pretrained(run)
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    assert load_pretrained(run).epoch == 3
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"use the file of another run\.$"):
        load_pretrained(run)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/checkpoint\.pt does not exist"):
        checkpoint.load(tmp_path / "nowhere" / "checkpoint.pt", "pretraining")


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_a_cut_off_checkpoint_is_called_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "pretraining", {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged"):
        checkpoint.load(path, "pretraining")


def test_a_file_of_another_program_or_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="damaged or no checkpoint"):
        checkpoint.load(path, "pretraining")
    checkpoint.save(path, "classifier", {})
    with pytest.raises(DataError, match="'siamusic-fast classifier'"):
        checkpoint.load(path, "pretraining")


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_FORMAT", 99)
        checkpoint.save(path, "pretraining", {})
    with pytest.raises(DataError, match=r"checkpoint\.pt has format 99, this siamusic-fast reads 4: use the"):
        checkpoint.load(path, "pretraining")


def test_force_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    names = ("config.json", "metrics.jsonl", "events.out.tfevents.1", "plots/loss.png")
    for name in (*names, "checkpoint.pt", "checkpoint-previous.pt", ".checkpoint-previous.pt.tmp"):
        (run / name).write_text("old")
    with pytest.raises(DataError, match="already exists and is not empty"):
        new_folder(run)
    assert list(new_folder(run, force=True).iterdir()) == []
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', which no run has"):
        new_folder(run, force=True)
    assert (run / "thesis.tex").read_text() == "years of work"


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_loading_runs_no_code_that_a_file_brings(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "bad.pt", "pretraining", {"x": Malicious(tmp_path / "made")})
    with pytest.raises(DataError, match=r"bad\.pt is whole and cannot be loaded \(UnpicklingError"):
        checkpoint.load(tmp_path / "bad.pt", "pretraining")
    assert not (tmp_path / "made").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    assert new_folder(tmp_path / "runs" / "new").is_dir()
    assert new_folder(tmp_path / "runs" / "new").is_dir()
    (tmp_path / "runs" / "new" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="already exists and is not empty: use another out"):
        new_folder(tmp_path / "runs" / "new")
    (tmp_path / "runs" / "new" / "mine.txt").write_text("mine")
    for force in (False, True):  # it is no run, so that neither going on nor replacing it is advised
        with pytest.raises(DataError, match=r"holds 'mine\.txt', which no run has: use another out"):
            new_folder(tmp_path / "runs" / "new", force=force)


def test_settings_of_another_version_are_named(tmp_path: Path, shard_set: ShardSet) -> None:
    values = dump(PretrainConfig())
    assert load_pretrain(values) == PretrainConfig()
    other = {**{name: value for name, value in values.items() if name != "epochs"}, "dropout": 0.5}
    with pytest.raises(DataError, match=r"another siamusic-fast \(dropout unknown; epochs missing\): use"):
        load_pretrain(other)
    with pytest.raises(DataError, match="power unknown"):
        load_pretrain({**values, "mel": {**values["mel"], "power": 2}})
    checkpoint.save(tmp_path / "checkpoint.pt", "pretraining", {"config": other, "ranks": [{}]})
    with (
        FolderLock() as lock,
        pytest.raises(ConfigError, match="was started with another epochs, dropout: resume it"),
    ):
        RunFolder(tmp_path, PretrainConfig(), shard_set, World()).reopen(lock)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"weight_decay = {value:g} must be a number"):
        PretrainConfig(weight_decay=value)
    with pytest.raises(ConfigError, match=f"floor_db = {value:g} must be a number"):
        MelConfig(floor_db=value)
