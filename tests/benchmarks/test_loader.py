import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loader, peers
from benchmarks.loader import held_on_gpu, measure, plan_of_batch, targets
from benchmarks.machine_limits import COPYING_CROPS, copying_crops
from benchmarks.paper_loader import paper_loader, write_arrays
from benchmarks.peers import Peer, difference, papers_peer, sample_of
from benchmarks.result import Target
from siamusic_fast.bench.report import Measurement, named
from siamusic_fast.bench.stages import HAND_OVER, READ, loader_workload, prepare
from siamusic_fast.bench.timing import measure_in_turns
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.shards.manifest import ShardSet
from tests.bench.test_loader import CPU, MEL, QUICK, small


@pytest.fixture(autouse=True)
def few_pairs_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_COMPARED_PAIRS", 64)


def test_the_plan_and_the_papers_loader_are_measured_beside_what_users_measure(shard_set: ShardSet) -> None:
    found = measure(small(shard_set, batch_size=4), ["image"], QUICK)
    names = [one.name for one in found.report.measurements]
    assert names[-3:] == [
        *("DALI: plan of 256 pairs, image", "DALI: image, beside the paper's loader", "paper: image")
    ]
    read, handed_over = (named(found.report.measurements, name) for name in (READ, HAND_OVER))
    assert read.limit == handed_over.limit == named(found.report.measurements, COPYING_CROPS).median
    planned = named(found.report.measurements, names[-3])
    assert (planned.unit, planned.median > 0) == ("ms of one core", True)
    assert found.targets[planned.name].at_most
    assert {one.name for one in found.report.ratios} == {
        "DALI: image / torch: image",
        "CPU seconds: DALI: image / torch: image",
        "DALI: image / DALI: features",
        "DALI: image, beside the paper's loader / paper: image",
        "DALI: read / limit: copying crops",
    }


def test_limits_are_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 2**20))
    (copied,) = measure_in_turns([copying_crops([path], 1000, count=50)], QUICK, CPU)
    assert copied.unit == "crops/s"
    assert copied.median > 50


def test_augmentations_without_a_peer_are_measured_alone(shard_set: ShardSet) -> None:
    found = measure(small(shard_set, batch_size=4), ["mask,hflip"], QUICK)
    assert named(found.report.measurements, "DALI: mask,hflip").median > 0
    assert found.report.notes[-1] == "the paper's loader does not augment with mask,hflip"


@pytest.mark.parametrize("aug", ["none", "image", "audio"])
def test_the_papers_loader_makes_what_we_make(shard_set: ShardSet, tmp_path: Path, aug: str) -> None:
    setup = small(shard_set)
    ours = sample_of(loader_workload(setup, aug))
    like = papers_peer(setup, aug, tmp_path, QUICK)
    other = dataclasses.replace(setup.frontend, mean=setup.frontend.statistics[0].item() - 20)
    louder = papers_peer(dataclasses.replace(setup, frontend=other), aug, tmp_path, QUICK)
    assert isinstance(like, Peer)
    assert isinstance(louder, Peer)
    assert difference(ours, like.sample) == ""
    assert re.match(r"has a mean of -?\d.*, not -?\d", difference(ours, louder.sample))


def test_tracks_too_short_for_the_papers_loader_are_left_out(shard_set: ShardSet, tmp_path: Path) -> None:
    setup = small(shard_set)
    min_samples = round(7.5 * 22_050)
    found = write_arrays(setup.plan.tracks, setup.frontend, tmp_path, 100, min_samples)
    assert 0 < len(found) < len(setup.plan.tracks)
    assert all(len(np.load(path)) >= min_samples for path in found)
    setup = prepare(shard_set, batch_size=8, device=CPU, mel=MelConfig(seconds=8.0))
    missing = papers_peer(setup, "audio", tmp_path, QUICK)
    assert missing == (
        "the paper's loader was not measured: all tracks are too short for its audio augmentations"
    )


def test_a_peer_that_makes_something_else_is_left_out(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_PAPER_TOLERANCE", -10.0)
    found = measure(small(shard_set, batch_size=4), ["image"], QUICK)
    assert [one.name for one in found.report.measurements if "paper" in one.name] == []
    assert found.report.notes[-1].startswith("paper: image is not measured: it has a mean of ")


@pytest.mark.parametrize("aug", ["image", "audio"])
def test_a_peer_without_augmentation_is_none(shard_set: ShardSet, aug: str) -> None:
    ours, like, plain = (
        sample_of(loader_workload(small(shard_set), name, engine))
        for name, engine in ((aug, "dali"), (aug, "torch"), ("none", "torch"))
    )
    assert difference(ours, like) == ""
    assert difference(ours, plain).startswith("has a mean square ")


def test_an_epoch_of_the_papers_loader_has_many_batches_however_few_tracks_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(30_000, np.float32))
    frontend = Frontend(mel=MEL, mean=0.0, std=1.0)
    with paper_loader([tmp_path / "a.npy"], frontend, aug="none", batch_size=2, procs=0) as batches:
        assert len(list(batches)) == 64


def test_the_plan_of_a_batch_is_of_256_pairs_however_few_tracks_there_are(shard_set: ShardSet) -> None:
    assert len(small(shard_set).plan.tracks) < 256
    with plan_of_batch(small(shard_set), "image").open() as batches:
        begun = next(iter(batches))
    assert isinstance(begun, list)
    assert {len(array) for arrays in begun for array in arrays} == {256}


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
def test_handing_over_is_judged_only_as_it_was_asked_for(
    shard_set: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    codec: str,
    available: int,
    threads: int,
    target: float | None,
) -> None:
    setup = small(shard_set)
    monkeypatch.setattr(loader, "cores", lambda: available)
    changed = dataclasses.replace(
        setup,
        shard_set=dataclasses.replace(shard_set, codec=codec),
        batch_size=batch_size,
        loader_threads=threads,
    )
    asked = targets(changed).get(HAND_OVER)
    assert (asked and asked.value) == target


def test_a_gpu_is_asked_for_more(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    on_gpu = dataclasses.replace(small(shard_set), device=torch.device("cuda", 0), batch_size=256)
    found = targets(on_gpu)
    assert (found["DALI: image"].value, found["DALI: audio"].value) == (20_000, 10_000)
    assert found["DALI: image / torch: image"].value == 2
    assert found["CPU seconds: DALI: image / torch: image"] == Target(0.5, at_most=True)


def rate(name: str, median: float, cpu_ms: float = 1.0, limit: float | None = None) -> Measurement:
    return Measurement(name=name, unit="pairs/s", windows=(median,), cpu_windows=(cpu_ms,), limit=limit)


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
def test_the_lowest_ceiling_holds_a_loader_on_a_gpu(
    bus: float, copied: float, cpu_ms: float, plan_ms: float, holds: str
) -> None:
    planned = Measurement(name="DALI: plan of 256 pairs, image", unit="ms of one core", windows=(plan_ms,))
    stages = [rate(READ, 8000.0), rate(HAND_OVER, copied, limit=bus), rate("DALI: image", 1000.0, cpu_ms)]
    words = held_on_gpu([planned, *stages], "image", 4)
    assert words.startswith(f"what holds DALI: image at 1,000 pairs/s: {holds}; allowed are: ")
    assert f"the CPU time, on 4 threads {4000 / cpu_ms:,.0f}" in words
