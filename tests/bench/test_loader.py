from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.bench import limits, loader, peers
from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.loader import measure, torch_loader
from siamusic_fast.bench.paper import paper_loader, write_arrays
from siamusic_fast.bench.peers import alike, papers_loader
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import TWO_CROPS, dali_loader, prepare
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.pipelines.loader import TrackLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.manifest import ShardSet

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
def test_every_stage_and_every_peer_is_measured(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, threads=1, timing=QUICK)
    ours = "DALI: recipe image, beside its peers"
    assert [one.name for one in found.measurements] == [
        *("DALI: read", "DALI: read and crop", "DALI: features alone", "DALI: recipe image", TWO_CROPS),
        limits.COPYING_CROPS,
        *(ours, "torch: recipe image", "torch, batches: recipe image", "paper's way: recipe image"),
    ]
    assert all(one.median > 0 and one.cpu_ms is not None for one in found.measurements)
    crops = named(found.measurements, TWO_CROPS)
    assert (crops.unit, crops.target, crops.verdict) == ("tracks/s", 4000, "too few windows")
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
    assert found.measurements[-3].name == "DALI: recipe mask,hflip"
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
    assert alike(ours, [like], recipe) == ([like], ())
    with pytest.raises(RuntimeError, match=r"paper's way: .* has a mean of -?\d.*, not .*: it is no peer"):
        alike(ours, [louder], recipe)


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
def test_a_peer_that_makes_something_else_is_our_mistake_or_is_left_out(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_ALIKE", -10.0)
    options: Any = {"peers": ["torch"], "mel": MEL, "batch_size": 4, "timing": QUICK}
    with pytest.raises(RuntimeError, match=r"torch: .* has a mean of .* it is no peer for recipe image"):
        measure(shard_set, recipes=["image"], **options)
    found = measure(shard_set, recipes=["mask,hflip"], **options)
    assert all("torch" not in one.name for one in found.measurements)
    assert found.notes[0].startswith("not measured for recipe mask,hflip: torch")


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_a_peer_without_augmentation_is_none(shard_set: ShardSet, recipe: str) -> None:
    _, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    ours = dali_loader(shard_set, options, recipe)
    like, unaugmented = (torch_loader(shard_set, options, name, 0, False) for name in (recipe, "none"))
    assert alike(ours, [like], recipe) == ([like], ())
    with pytest.raises(RuntimeError, match=f"it is no peer for recipe {recipe}"):
        alike(ours, [unaugmented], recipe)


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
    assert limits.memory_copy() > 1e8
    assert limits.disk_read([path]).bytes_per_second > 1e6
    contenders = [limits.copying_crops([path], 1000, count=50), limits.multiplying(CPU, torch.float32)]
    copied, multiplied = in_turns(contenders, QUICK, CPU)
    assert (copied.unit, multiplied.unit) == ("crops/s", "TFLOP/s")
    assert copied.median > 50
    assert multiplied.median > 1e-4


def test_an_unknown_backend_is_refused_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="'jax' is unknown: choose one of dali, torch"):
        two_view_loader("jax", shard_set, recipe="none")
