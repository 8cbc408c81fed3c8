import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.bench import limits, loader, peers, stages
from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.loader import measure, torch_loader
from siamusic_fast.bench.paper import paper_loader, write_arrays
from siamusic_fast.bench.peers import alike, papers_loader
from siamusic_fast.bench.report import Measurement, named
from siamusic_fast.bench.stages import (
    COPY,
    CROP,
    TWO_CROPS,
    dali_loader,
    held_on_gpu,
    prepare,
    two_crops,
)
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores

CPU = torch.device("cpu")
MEL = MelConfig(seconds=1.0)
QUICK = Timing(windows=1, seconds=0.05)


@pytest.fixture(autouse=True)
def few_pairs_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_COMPARED", 64)


@pytest.fixture
def one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the torch backend have one setting to be tried with, either way."""
    many = loader.torch_loaders
    monkeypatch.setattr(loader, "torch_loaders", lambda *arguments: [way[:1] for way in many(*arguments)])


@pytest.mark.usefixtures("one_setting")
def test_every_stage_and_every_peer_is_measured(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_BATCH_ON_CPU", 4)
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, timing=QUICK)
    ours = "DALI: recipe image, beside its peers"
    assert [one.name for one in found.measurements] == [
        *("DALI: read", "DALI: read and crop", "DALI: features alone", "DALI: recipe image", TWO_CROPS),
        *(limits.COPYING_CROPS, limits.COPYING),
        *(ours, "torch: recipe image", "torch, batches: recipe image", "paper's way: recipe image"),
        "limit: reading the disk",
    ]
    assert all(one.median > 0 for one in found.measurements)
    assert all(one.cpu_ms is not None for one in found.measurements[:-1])
    assert found.settings["peers"] == ["torch", "paper"]
    disk = found.measurements[-1]
    assert (disk.unit, len(disk.windows)) == ("GB/s", 3)
    of_a_crop = 1e9 * disk.median / (2 * 22_050)
    assert f"of a wav track 44,100 bytes are read: the disk allows {of_a_crop:,.0f} tracks/s" in " ".join(
        found.notes
    ).replace("memory, which held the files, allows", "the disk allows")
    crops = named(found.measurements, TWO_CROPS)
    assert (crops.unit, crops.verdict) == ("tracks/s", "too few windows" if cores() == 2 else "")
    assert found.limits["DALI: read and crop"] == 2 * found.limits[TWO_CROPS] > 0
    batches = named(found.measurements, "torch, batches: recipe image")
    assert batches.setting == "0 workers, whole batches on the CPU"
    assert [(one.name, one.target) for one in found.ratios] == [
        ("DALI: recipe image / DALI: features alone", 0.6),
        ("CPU seconds: DALI: recipe image / DALI: features alone", None),
        (f"DALI: read and crop / {limits.COPYING_CROPS}", None),
        (f"{ours} / torch: recipe image", 1.3),
        (f"CPU seconds: {ours} / torch: recipe image", None),
        (f"{ours} / torch, batches: recipe image", 1.3),
        (f"CPU seconds: {ours} / torch, batches: recipe image", None),
        (f"{ours} / paper's way: recipe image", None),
    ]
    by_hand = named(found.measurements, ours).median / batches.median
    assert found.ratios[5].median == by_hand
    assert found.befores["DALI: features alone"] == "DALI: read and crop"
    assert found.notes[-1].startswith("what holds DALI: recipe image: of ")


def test_a_recipe_without_a_peer_is_measured_alone(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["mask,hflip"], peers=["paper"], mel=MEL, batch_size=4, timing=QUICK)
    assert found.measurements[3].name == "DALI: recipe mask,hflip"
    assert found.notes[0] == "the paper's way has no recipe mask,hflip"


def papers(shard_set: ShardSet, folder: Path, recipe: str, normalisation: Normalisation) -> Contender | str:
    setup, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    options["normalisation"] = normalisation
    return papers_loader(setup, options, recipe, folder, QUICK)


@pytest.mark.parametrize("recipe", ["none", "image", "audio"])
def test_the_papers_way_makes_what_we_make(shard_set: ShardSet, tmp_path: Path, recipe: str) -> None:
    _, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    mean, deviation = options["normalisation"]
    ours = dali_loader(shard_set, options, recipe)
    like = papers(shard_set, tmp_path, recipe, Normalisation(mean, deviation))
    louder = papers(shard_set, tmp_path, recipe, Normalisation(mean - 20, deviation))
    assert isinstance(like, Contender)
    assert isinstance(louder, Contender)
    kept, notes = alike(ours, [like, louder])
    assert kept == [like]
    (note,) = notes
    assert re.match(rf"paper's way: recipe {recipe} is not measured: it has a mean of -?\d.*, not -?\d", note)


def test_tracks_too_short_for_the_papers_way_are_left_out(shard_set: ShardSet, tmp_path: Path) -> None:
    source = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)[0].source
    shortest = round(7.5 * 22_050)
    found = write_arrays(source, tmp_path, 100, shortest)
    assert 0 < len(found) < source.tracks
    assert all(len(np.load(path)) >= shortest for path in found)
    setup, options = prepare(shard_set, batch_size=8, device=CPU, mel=MelConfig(seconds=8.0))
    missing = papers_loader(setup, options, "audio", tmp_path, QUICK)
    assert missing == "the paper's way was not measured: all tracks are too short for its recipe audio"


@pytest.mark.usefixtures("one_setting")
def test_a_peer_that_makes_something_else_is_left_out_and_the_rest_is_measured(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_ALIKE", -10.0)
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, timing=QUICK)
    assert [one.name for one in found.measurements if "torch" in one.name] == []
    assert named(found.measurements, "paper's way: recipe image").median > 0
    assert found.notes[0].startswith("torch: recipe image is not measured: it has a mean of ")
    assert found.notes[1].startswith("torch, batches: recipe image is not measured: it has a mean of ")


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_a_peer_without_augmentation_is_none(shard_set: ShardSet, recipe: str) -> None:
    _, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    ours = dali_loader(shard_set, options, recipe)
    like, unaugmented = (torch_loader(shard_set, options, name, 0, False) for name in (recipe, "none"))
    kept, notes = alike(ours, [like, unaugmented])
    assert kept == [like]
    assert notes[0].startswith("torch: recipe none is not measured: it has a mean square ")


def test_an_epoch_of_the_papers_way_has_many_batches_however_few_tracks_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(30_000, np.float32))
    made = paper_loader(
        [tmp_path / "a.npy"], MEL, Normalisation(0.0, 1.0), recipe="none", batch_size=2, workers=0
    )
    with made as batches:
        assert len(list(batches)) == 64


def test_shards_made_to_measure_with_are_read_like_any_others(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "shards", tracks=3)
    with TrackLoader(made, crops=2) as tracks:
        ((mels, labels),) = list(tracks)
    assert mels.shape == (3, 2, 1, 48, 431)
    assert labels.tolist() == [0, 1, 0]


def test_limits_are_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 2**20))
    assert limits.disk_read([path]).bytes_per_second > 1e6
    contenders = [
        limits.copying(),
        limits.copying_crops([path], 1000, count=50),
        limits.multiplying(CPU, torch.float32),
    ]
    memory, copied, multiplied = in_turns(contenders, QUICK, CPU)
    assert (memory.unit, copied.unit, multiplied.unit) == ("GB/s", "crops/s", "TFLOP/s")
    assert memory.median > 0.1
    assert copied.median > 50
    assert multiplied.median > 1e-4


@pytest.mark.parametrize(
    ("batch_size", "codec", "available", "threads", "target"),
    [
        (64, "wav", 2, 2, 4000),
        (16, "wav", 2, 2, None),
        (64, "flac", 2, 2, None),
        (64, "wav", 8, 8, None),
        (64, "wav", 2, 1, None),
    ],
)
def test_crops_are_judged_only_as_they_were_asked_for(
    shard_set: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    codec: str,
    available: int,
    threads: int,
    target: float | None,
) -> None:
    setup, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    source = dataclasses.replace(setup.source, shard_set=dataclasses.replace(shard_set, codec=codec))
    monkeypatch.setattr(stages, "cores", lambda: available)
    found = two_crops(
        dataclasses.replace(setup, source=source, threads=threads), {**options, "batch_size": batch_size}
    )
    assert found.target == target


def test_peers_that_have_more_cores_than_dali_are_no_ratio(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "cores", lambda: 2)
    monkeypatch.setattr(loader, "_beside_peers", lambda *arguments: ([rate("ours", 1.0)] * 2, []))
    options: Any = {"recipes": ["none"], "peers": ["torch"], "mel": MEL, "batch_size": 4, "timing": QUICK}
    fair, unfair = (measure(shard_set, threads=threads, **options) for threads in (2, 1))
    assert [one.name for one in fair.ratios][1:] == ["ours / ours"]
    assert len(unfair.ratios) == 1
    assert "DALI had 1 of 2 cores, its peers all: no ratio is fair" in unfair.notes


def rate(name: str, median: float, cpu_ms: float = 1.0) -> Measurement:
    return Measurement(name=name, unit="pairs/s", windows=(median,), cpu_windows=(cpu_ms,))


@pytest.mark.parametrize(
    ("bus", "copied", "cpu_ms", "holds"),
    [
        (1200.0, 1300.0, 1.0, "the bus"),
        (9000.0, 1100.0, 1.0, COPY),
        (9000.0, 5000.0, 3.6, "the CPU time, on 4 threads"),  # 4 threads / 3.6 ms: 1,111
        (9000.0, 5000.0, 1.0, "the kernels, as nothing else is near"),
    ],
)
def test_the_lowest_ceiling_holds_a_recipe_on_a_gpu(
    bus: float, copied: float, cpu_ms: float, holds: str
) -> None:
    found = [rate(CROP, 8000.0), rate(COPY, copied), rate("DALI: recipe image", 1000.0, cpu_ms)]
    words = held_on_gpu(found, "image", 4, bus)
    assert words.startswith(f"what holds DALI: recipe image at 1,000 pairs/s: {holds}; allowed are: ")
    assert f"the CPU time, on 4 threads {4000 / cpu_ms:,.0f}" in words


def test_an_unknown_backend_is_refused_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="'jax' is unknown: choose one of dali, torch"):
        two_view_loader("jax", shard_set, recipe="none")
