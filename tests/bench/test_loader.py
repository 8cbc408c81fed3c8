import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.bench import limits, loader
from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.loader import _unlike, measure, papers_loader
from siamusic_fast.bench.paper import write_arrays
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import TWO_CROPS, dali_loader, prepare
from siamusic_fast.bench.timing import Contender, Timing
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
    monkeypatch.setattr(loader, "_COMPARED", 32)


@pytest.fixture
def one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the torch backend have one setting to be tried with."""
    many = loader.torch_loaders
    monkeypatch.setattr(loader, "torch_loaders", lambda *arguments: many(*arguments)[1:2])


@pytest.mark.usefixtures("one_setting")
def test_every_stage_and_every_peer_is_measured(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, threads=1, timing=QUICK)
    ours = "DALI: recipe image, beside its peers"
    assert [one.name for one in found.measurements] == [
        *("DALI: read", "DALI: read and crop", "DALI: features alone", "DALI: recipe image", TWO_CROPS),
        *(ours, "torch: recipe image", "paper's way: recipe image"),
    ]
    assert all(one.median > 0 and one.cpu_ms is not None for one in found.measurements)
    crops = named(found.measurements, TWO_CROPS)
    assert (crops.unit, crops.target, crops.verdict) == ("tracks/s", 4000, "too few windows")
    assert found.limits["DALI: read and crop"] == 2 * found.limits[TWO_CROPS] > 0
    assert named(found.measurements, "torch: recipe image").setting.endswith("batches at a time")
    assert [(one.name, one.target) for one in found.ratios] == [
        ("DALI: recipe image / DALI: features alone", 0.6),
        (f"{ours} / torch: recipe image", 1.3),
        (f"CPU seconds: {ours} / torch: recipe image", None),
        (f"{ours} / paper's way: recipe image", None),
    ]
    by_hand = found.measurements[5].median / found.measurements[6].median
    assert found.ratios[1].median == by_hand


def test_a_recipe_without_a_peer_is_measured_alone(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["mask,hflip"], peers=["paper"], mel=MEL, batch_size=4, timing=QUICK)
    assert found.measurements[-2].name == "DALI: recipe mask,hflip"
    assert found.notes[0] == "the paper's way has no recipe mask,hflip"


def papers(shard_set: ShardSet, folder: Path, recipe: str, normalisation: Normalisation) -> Contender | str:
    setup, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    options["normalisation"] = normalisation
    return papers_loader(setup, options, recipe, folder, QUICK)


@pytest.mark.parametrize("recipe", ["none", "image"])
def test_the_papers_way_makes_what_we_make(shard_set: ShardSet, tmp_path: Path, recipe: str) -> None:
    _, options = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    mean, deviation = options["normalisation"]
    ours = dali_loader(shard_set, options, recipe)
    like = papers(shard_set, tmp_path, recipe, Normalisation(mean, deviation))
    louder = papers(shard_set, tmp_path, recipe, Normalisation(mean - 20, deviation))
    assert isinstance(like, Contender)
    assert isinstance(louder, Contender)
    assert _unlike(ours, like, 0.5) == ""
    assert re.search(r"paper's way: .* mean .*, not \(1, 48, ", _unlike(ours, louder, 0.5))


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
    monkeypatch.setattr(loader, "_LIKE", {"torch": 0.0})
    options: Any = {"peers": ["torch"], "mel": MEL, "batch_size": 4, "timing": QUICK}
    with pytest.raises(RuntimeError, match=r"torch: .* makes .* it is no peer for recipe image"):
        measure(shard_set, recipes=["image"], **options)
    found = measure(shard_set, recipes=["mask,hflip"], **options)
    assert found.ratios[1:] == ()
    assert found.notes[0].startswith("not measured for recipe mask,hflip: torch")


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
    assert limits.crop_copy([path], 1000, count=50) > 0
    assert limits.disk_read([path]).bytes_per_second > 1e6
    assert limits.matmul(torch.device("cpu"), torch.float32) > 1e8


def test_an_unknown_backend_is_refused_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="'jax' is unknown: choose one of dali, torch"):
        two_view_loader("jax", shard_set, recipe="none")
