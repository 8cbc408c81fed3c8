import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.bench import limits, loader, peers, stages
from siamusic_fast.bench.data import make_shards
from siamusic_fast.bench.loader import measure
from siamusic_fast.bench.paper import paper_loader, write_arrays
from siamusic_fast.bench.peers import alike, papers_loader, torch_loader
from siamusic_fast.bench.report import Measurement, named
from siamusic_fast.bench.stages import (
    HAND_OVER,
    READ,
    _HandingOver,
    dali_loader,
    hand_over_stage,
    held_on_gpu,
    of_plan,
    plan_of_batch,
    prepare,
    with_plan_times,
)
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.pipelines.prefetch import Prefetcher
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.processes.pool import cores
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.verify import verify

CPU = torch.device("cpu")
MEL = MelConfig(seconds=1.0)
QUICK = Timing(windows=1, seconds=0.05)


@pytest.fixture(autouse=True)
def few_pairs_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_COMPARED", 64)


def test_every_stage_and_every_peer_is_measured(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_BATCH_ON_CPU", 4)
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, timing=QUICK)
    ours = "DALI: recipe image, beside its peers"
    assert [one.name for one in found.measurements] == [
        *("DALI: plan", "DALI: read", "DALI: read and hand over", "DALI: features alone"),
        *("DALI: recipe image", "DALI: plan of 256 pairs, recipe image"),
        *(limits.COPYING_CROPS, limits.COPYING),
        *(ours, "torch: recipe image", "paper's way: recipe image"),
        "limit: reading the disk",
    ]
    assert all(one.median > 0 for one in found.measurements)
    planned = named(found.measurements, of_plan("image"))
    assert (planned.unit, planned.target, planned.at_most) == ("ms of one core", 8.0, True)
    assert all(one.cpu_ms is not None for one in found.measurements[:-1] if one is not planned)
    assert found.settings["peers"] == ["torch", "paper"]
    disk = found.measurements[-1]
    assert (disk.unit, len(disk.windows)) == ("GB/s", 3)
    of_a_crop = 1e9 * disk.median / (2 * 22_050)
    assert f"of a wav track 44,100 bytes are read: the disk allows {of_a_crop:,.0f} tracks/s" in " ".join(
        found.notes
    ).replace("memory, which held the files, allows", "the disk allows")
    assert named(found.measurements, HAND_OVER).target == (21_000 if cores() == 2 else None)
    assert found.limits[READ] == found.limits[HAND_OVER] > 0
    torch_backend = named(found.measurements, "torch: recipe image")
    assert torch_backend.setting == f"{cores()} threads on the CPU"
    assert [(one.name, one.target) for one in found.ratios] == [
        ("DALI: recipe image / DALI: features alone", 0.85),
        ("CPU seconds: DALI: recipe image / DALI: features alone", None),
        (f"DALI: read / {limits.COPYING_CROPS}", None),
        (f"{ours} / torch: recipe image", None),
        (f"CPU seconds: {ours} / torch: recipe image", None),
        (f"{ours} / paper's way: recipe image", None),
    ]
    by_hand = named(found.measurements, ours).median / torch_backend.median
    assert found.ratios[3].median == by_hand
    assert found.befores["DALI: features alone"] == "DALI: read and hand over"
    assert found.notes[-1].startswith("what holds DALI: recipe image: of ")


def test_a_recipe_without_a_peer_is_measured_alone(shard_set: ShardSet) -> None:
    found = measure(shard_set, recipes=["mask,hflip"], peers=["paper"], mel=MEL, batch_size=4, timing=QUICK)
    assert found.measurements[4].name == "DALI: recipe mask,hflip"
    assert found.notes[0] == "the paper's way has no recipe mask,hflip"


@pytest.mark.parametrize("recipe", ["none", "image", "audio"])
def test_the_papers_way_makes_what_we_make(shard_set: ShardSet, tmp_path: Path, recipe: str) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    ours = dali_loader(shard_set, setup.config, recipe)
    like = papers_loader(setup, recipe, tmp_path, QUICK)
    setup.plan.frontend = dataclasses.replace(setup.frontend, mean=setup.frontend.mean - 20)
    louder = papers_loader(setup, recipe, tmp_path, QUICK)
    assert isinstance(like, Contender)
    assert isinstance(louder, Contender)
    kept, notes = alike(ours, [like, louder])
    assert kept == [like]
    (note,) = notes
    assert re.match(rf"paper's way: recipe {recipe} is not measured: it has a mean of -?\d.*, not -?\d", note)


def test_tracks_too_short_for_the_papers_way_are_left_out(shard_set: ShardSet, tmp_path: Path) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    shortest = round(7.5 * 22_050)
    found = write_arrays(setup.plan.tracks, setup.frontend, tmp_path, 100, shortest)
    assert 0 < len(found) < len(setup.plan.tracks)
    assert all(len(np.load(path)) >= shortest for path in found)
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MelConfig(seconds=8.0))
    missing = papers_loader(setup, "audio", tmp_path, QUICK)
    assert missing == "the paper's way was not measured: all tracks are too short for its recipe audio"


def test_a_peer_that_makes_something_else_is_left_out_and_the_rest_is_measured(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_ALIKE", -10.0)
    found = measure(shard_set, recipes=["image"], mel=MEL, batch_size=4, timing=QUICK)
    assert [one.name for one in found.measurements if "torch" in one.name] == []
    assert named(found.measurements, "paper's way: recipe image").median > 0
    assert found.notes[0].startswith("torch: recipe image is not measured: it has a mean of ")


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_a_peer_without_augmentation_is_none(shard_set: ShardSet, recipe: str) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    ours = dali_loader(shard_set, setup.config, recipe)
    like, unaugmented = (torch_loader(setup, name) for name in (recipe, "none"))
    kept, notes = alike(ours, [like, unaugmented])
    assert kept == [like]
    assert notes[0].startswith("torch: recipe none is not measured: it has a mean square ")


def test_an_epoch_of_the_papers_way_has_many_batches_however_few_tracks_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(30_000, np.float32))
    frontend = Frontend(mel=MEL, mean=0.0, std=1.0)
    made = paper_loader([tmp_path / "a.npy"], frontend, recipe="none", batch_size=2, procs=0)
    with made as batches:
        assert len(list(batches)) == 64


def test_shards_made_to_measure_with_are_read_like_any_others(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "shards", tracks=3)
    assert verify(made.folder, procs=1).problems == ()
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
        (64, "wav", 2, 2, 21_000),
        (16, "wav", 2, 2, None),
        (64, "flac", 2, 2, None),
        (64, "wav", 8, 8, None),
        (64, "wav", 2, 1, None),
    ],
)
def test_handing_over_is_judged_only_as_they_were_asked_for(
    shard_set: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    codec: str,
    available: int,
    threads: int,
    target: float | None,
) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    monkeypatch.setattr(stages, "cores", lambda: available)
    changed = dataclasses.replace(
        setup,
        shard_set=dataclasses.replace(shard_set, codec=codec),
        config=dataclasses.replace(setup.config, batch_size=batch_size),
        threads=threads,
    )
    assert hand_over_stage(changed).target == target


def test_the_plan_of_a_batch_is_of_256_pairs_however_few_tracks_there_are(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    contender = plan_of_batch(setup, "image")
    with contender.open() as batches:
        begun = next(iter(batches))
    assert isinstance(begun, list)
    assert {len(array) for arrays in begun for array in arrays} == {256}
    other, planned = with_plan_times([rate("any", 1.0), rate(of_plan("image"), 1.0, cpu_ms=0.03)], ["image"])
    assert other == rate("any", 1.0)
    assert planned.windows == pytest.approx((256 * 0.03,))


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


def test_what_is_handed_over_is_what_was_read(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MEL)
    reader = Reader(setup.plan.tracks, setup.frontend)
    engine = _HandingOver(setup.plan, CPU, threads=1)
    places = [(0, 0), (0, 1), (0, 2)]
    prefetcher = Prefetcher(setup.plan, reader, engine, iter(places), threads=1, depth=2)
    seen = []
    for computed in engine.run(prefetcher):
        (spans,) = computed.ready.batch.spans
        expected = np.empty((8, 22_050), dtype=np.int16)
        reader.read(spans, slice(0, 8), expected)
        assert np.array_equal(computed.views[0].numpy(), expected)
        seen.append(computed.ready.batch.place)
        prefetcher.release(computed)
    prefetcher.close()
    assert seen == places


def rate(name: str, median: float, cpu_ms: float = 1.0) -> Measurement:
    return Measurement(name=name, unit="pairs/s", windows=(median,), cpu_windows=(cpu_ms,))


@pytest.mark.parametrize(
    ("bus", "copied", "cpu_ms", "plan_ms", "holds"),
    [
        (1200.0, 1300.0, 1.0, 8.0, "the bus"),
        (9000.0, 1100.0, 1.0, 8.0, HAND_OVER),
        (9000.0, 5000.0, 3.6, 8.0, "the CPU time, on 4 threads"),  # 4 threads / 3.6 ms: 1,111
        (9000.0, 5000.0, 1.0, 240.0, "the plan, on one core"),  # 256 pairs / 240 ms: 1,067
        (9000.0, 5000.0, 1.0, 8.0, "the kernels, as nothing else is near"),
    ],
)
def test_the_lowest_ceiling_holds_a_recipe_on_a_gpu(
    bus: float, copied: float, cpu_ms: float, plan_ms: float, holds: str
) -> None:
    planned = Measurement(name=of_plan("image"), unit="ms of one core", windows=(plan_ms,))
    found = [planned, rate(READ, 8000.0), rate(HAND_OVER, copied), rate("DALI: recipe image", 1000.0, cpu_ms)]
    words = held_on_gpu(found, "image", 4, bus)
    assert words.startswith(f"what holds DALI: recipe image at 1,000 pairs/s: {holds}; allowed are: ")
    assert f"the CPU time, on 4 threads {4000 / cpu_ms:,.0f}" in words
