"""Runs that go on in more or fewer processes than they were begun in."""

import dataclasses
import functools
import signal
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torchvision.ops import StochasticDepth

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.config import BACKBONES, Architecture, MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.models import checkpoint
from siamusic_fast.models import networks as models
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.plan import Batch, Place
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.processes.world import World
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.training.checks import share_of_batch
from siamusic_fast.training.pretrain import pretrain
from siamusic_fast.training.run_folder import EarlierRun, load_run
from siamusic_fast.training.run_log import read_log
from tests.training.networks import TinyEncoder
from tests.training.test_pretrain import TINY, Watching, send

ALONE = dataclasses.replace(
    TINY,
    mel=MelConfig(seconds=0.1),
    batch_size=64,
    grad_accum_steps=1,
    backend="torch",
    knn_every=0,
    sync_batchnorm=True,
    projection_dim=32,
)
"""3 batches of an epoch, thus 3 steps, in one process; blocks of 32, so that two may share each."""
IN_TWO = dataclasses.replace(ALONE, batch_size=32)
"""The same for each of two processes."""

Seen = dict[Place, tuple[list[int], Tensor]]
"""The tracks of each batch that was used, and its first views, [pairs, 1, n_mels, frames]."""


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """200 tracks of 0.2 s."""
    folder, rng = tmp_path_factory.mktemp("tracks"), np.random.default_rng(0)
    names = [f"{number:03d}" for number in range(200)]
    for name in names:
        soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, 4_410), 22_050)
    of_corpus = tuple(Track(name, f"{name}.wav", "training", "") for name in names)
    corpus = Corpus(name="tracks", folder=folder, tracks=of_corpus)
    return pack(corpus, folder / "set", PackConfig(min_seconds=0.1, tracks_per_shard=50), procs=1)


def encoder(architecture: Architecture) -> TinyEncoder:
    """Return an encoder whose dropout, which each process draws for itself, drops nothing."""
    made = TinyEncoder(architecture)
    next(layer for layer in made if isinstance(layer, torch.nn.Dropout)).p = 0.0
    return made


def watched(
    config: Any, shard_set: ShardSet, out: Path, *, world: World, stops_after: int = 0, resume: bool = False
) -> list[tuple[Seen, list[str]]]:
    """Pre-train, or be told to stop after some steps; return what each process used and was warned of."""
    seen: Seen = {}
    give = TwoViewLoader._output

    def noted(loader: TwoViewLoader, batch: Batch, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        seen[batch.place] = (batch.tracks.tolist(), views[0].clone())
        return give(loader, batch, views)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True, action="always") as said:
        patch.setattr(models, "encoder", encoder)
        patch.setattr(TwoViewLoader, "_output", noted)
        stop = Watching(stops_after, (lambda: send(signal.SIGTERM)) if stops_after else None)
        try:
            pretrain(config, shard_set, out, world=world, resume=resume, progress=stop)
        except Stopped:
            assert stops_after
    notes = [str(one.message) for one in said if "goes on with batches of" in str(one.message)]
    return world.gather((seen, notes))


def in_two_processes(shard_set: ShardSet, folder: Path, *, world: World) -> Any:
    """Go on with a run of one process, and begin one that another will go on with."""
    went_on = watched(IN_TWO, shard_set, folder / "1 to 2", world=world, resume=True)
    return went_on, watched(IN_TWO, shard_set, folder / "2 to 1", world=world, stops_after=2)


def joined(parts: Iterable[Seen]) -> Seen:
    """Return what all processes of a run used, in the order of their ranks."""
    found: Seen = {}
    for part in parts:
        for place, (numbers, views) in part.items():
            before, others = found.get(place, ([], views[:0]))
            found[place] = (before + numbers, torch.cat([others, views]))
    return found


def assert_close(one: Path, other: Path) -> None:
    first, second = (checkpoint.load(run / "checkpoint.pt", "pretraining") for run in (one, other))
    assert first["step"] == second["step"] == 6
    for part in ("encoder", "projector", "predictor"):
        for name, weight in first[part].items():
            torch.testing.assert_close(second[part][name], weight, rtol=1e-3, atol=1e-4, msg=f"{part}.{name}")
    assert read_log(other)[-1]["loss"] == pytest.approx(read_log(one)[-1]["loss"], abs=1e-4)


def test_in_other_processes_every_step_has_the_same_tracks_and_with_one_batch_norm_the_same_weights(
    tracks: ShardSet, tmp_path: Path
) -> None:
    alone = functools.partial(watched, shard_set=tracks, world=World())
    [(whole, _)] = alone(ALONE, out=tmp_path / "whole")
    [(begun, _)] = alone(ALONE, out=tmp_path / "1 to 2", stops_after=2)
    went_on, in_two = launch(functools.partial(in_two_processes, tracks, tmp_path), gpus=0, procs=2)
    [(ended, notes)] = alone(ALONE, out=tmp_path / "2 to 1", resume=True)
    assert sorted(whole) == [(epoch, batch) for epoch in (0, 1) for batch in range(3)]
    for used in (
        begun | joined(seen for seen, _ in went_on),
        joined(seen for seen, _ in in_two) | ended,
    ):
        for place, (numbers, views) in whole.items():
            assert used[place][0] == numbers
            torch.testing.assert_close(used[place][1], views, rtol=0, atol=1e-5)
    assert_close(tmp_path / "whole", tmp_path / "1 to 2")
    assert_close(tmp_path / "whole", tmp_path / "2 to 1")
    [note], [] = [told for _, told in went_on]
    assert note == (
        f"{tmp_path / '1 to 2'} goes on with batches of 2 x 32 instead of 1 x 64: every step has the same "
        "tracks, with the same crops and augmentations. Sums are added up in another order, so figures are "
        "rounded differently"
    )
    assert "with batches of 1 x 64 instead of 2 x 32" in notes[0]


def begun_in(processes: int, config: Any, run: Path, shard_set: ShardSet) -> None:
    """Leave a run as it is after two steps; let its checkpoint say that so many processes wrote it."""
    watched(config, shard_set, run, world=World(), stops_after=2)
    path = run / "checkpoint.pt"
    saved = checkpoint.load(path, "pretraining")
    saved["ranks"] *= processes
    each = config.batch_size // processes
    checkpoint.save(path, "pretraining", saved | {"config": {**saved["config"], "batch_size": each}})


def test_what_is_not_equal_in_other_processes_is_said(tracks: ShardSet, tmp_path: Path) -> None:
    config = dataclasses.replace(ALONE, batch_size=48, sync_batchnorm=False)
    begun_in(3, config, tmp_path / "run", tracks)
    [(_, notes)] = watched(config, tracks, tmp_path / "run", world=World(), resume=True)
    [note] = notes
    assert note.endswith(
        "goes on with batches of 1 x 48 instead of 3 x 16: every step has the same tracks, with other crops "
        "and augmentations, as 16 and 48 are not both multiples of 32. Batch norm sees 48 at a time instead "
        "of 16, so the weights will be others"
    )


def test_a_run_whose_network_draws_in_each_process_is_said_to_learn_other_weights(
    tracks: ShardSet, tmp_path: Path
) -> None:
    config = dataclasses.replace(ALONE, backbone="swin_t")
    begun_in(2, config, tmp_path / "run", tracks)
    [(_, [note])] = watched(config, tracks, tmp_path / "run", world=World(), resume=True)
    assert note.endswith(
        "with the same crops and augmentations. Other blocks of the network are skipped (stochastic depth), "
        "so the weights will be others"
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_backbones_that_draw_while_they_learn_are_known(backbone: str) -> None:
    with torch.device("meta"):
        layers = models.encoder(Architecture(backbone=backbone)).modules()
    draws = [
        layer for layer in layers if isinstance(layer, (StochasticDepth, torch.nn.Dropout)) and layer.p > 0
    ]
    assert bool(draws) is (backbone in models.RANDOM_DEPTH)


def test_another_batch_of_all_processes_is_refused_with_the_batch_size_that_fits(
    tracks: ShardSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun_in(4, ALONE, run, tracks)
    words = r"run was trained with batches of 4 x 16 = 64, not 1 x 16: use .* --batch-size 64\)\.$"
    with pytest.raises(ConfigError, match=words):
        pretrain(dataclasses.replace(ALONE, batch_size=16), tracks, run, resume=True)
    # What the command line takes by itself.
    for processes, size in ((1, 64), (2, 32), (4, 16), (8, 8)):
        assert load_run(run).config_for(processes).batch_size == size


@pytest.mark.parametrize(("processes", "fewer"), [(3, 2), (64, 32), (100, 32)])
def test_processes_that_cannot_share_the_batch_are_refused_with_a_number_that_can(
    processes: int, fewer: int
) -> None:
    words = (
        rf"4 x 16 = 64, which {processes} processes cannot share .* use {fewer} .*--procs {fewer} on the CPU"
    )
    with pytest.raises(ConfigError, match=words):
        share_of_batch(Path("run"), 4, 16, processes)
    assert share_of_batch(Path("run"), 4, 16, fewer) == 64 // fewer


@pytest.mark.parametrize(
    ("begun", "sync_batchnorm", "goes_on"),
    [(1, None, True), (4, None, True), (4, False, False), (1, False, False)],
)
def test_batch_norm_goes_on_to_see_as_many_pairs_as_it_did(
    tmp_path: Path, begun: int, sync_batchnorm: bool | None, goes_on: bool
) -> None:
    config = dataclasses.replace(ALONE, batch_size=256 // begun // 2, sync_batchnorm=sync_batchnorm)
    earlier = EarlierRun(path=tmp_path, config=config, data="", processes=begun)
    assert earlier.config_for(begun) == config
    assert earlier.config_for(2).sync_batchnorm is goes_on
