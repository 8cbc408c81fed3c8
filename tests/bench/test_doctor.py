import dataclasses
import re
from typing import Any

import pytest
import torch

from siamusic_fast.bench import doctor
from siamusic_fast.bench.doctor import Facts, advise, examine
from siamusic_fast.bench.stages import prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.errors import ConfigError
from siamusic_fast.shards.manifest import ShardSet

STAGES = {
    "training": doctor.TRAINING,
    "loader": doctor.LOADER,
    "together": doctor.TOGETHER,
    "plan": doctor.PLANNING,
    "read": doctor.READING,
    "handed_over": doctor.HANDING_OVER,
    "features": doctor.FEATURES_ALONE,
    "by_cpu": doctor.CPU_THREADS,
    "disk": doctor.DISK,
    "torch_engine": doctor.TORCH,
}
RATES = {"training": 1000.0, "loader": 800.0, "together": 700.0, "plan": 30_000.0, "read": 9000.0}
RATES |= {"handed_over": 8000.0, "features": 4000.0, "by_cpu": 7000.0, "disk": 9000.0}
GPU = Facts(
    rates={STAGES[name]: rate for name, rate in RATES.items()},
    fed=0.7,
    spread=0.03,
    waiting=0.3,
    cold=True,
    codec="wav",
    device="cuda",
    loader_threads=8,
    cores=8,
)


def changed(facts: Facts, **changes: Any) -> Facts:
    """Return `facts` with other rates or settings."""
    rates = {STAGES[name]: changes.pop(name) for name in STAGES if name in changes}
    return dataclasses.replace(facts, rates=facts.rates | rates, **changes)


CPU = changed(GPU, device="cpu", together=440, fed=0.44, torch_engine=1600.0)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (changed(GPU, codec="flac", read=850, disk=9000), "Decoding flac .* --codec wav"),
        (changed(GPU, read=750, disk=750), "The disk is"),
        (changed(GPU, read=850, loader_threads=2), "Only 2 of 8 cores .* loader_threads=8"),
        (changed(GPU, read=850, loader_threads=7), "Only 7 of 8 cores"),
        (changed(GPU, read=850), "more CPU cores"),
        (changed(GPU, read=870, training=2000, fed=0.35), "more CPU"),
        (GPU, "lighter augmentations"),
        (changed(GPU, features=860), "features alone: .* --seconds"),
        (changed(GPU, plan=850), "Planning, .* fewer augmentations"),
        (changed(GPU, loader=5000), "lighter augmentations"),
        (changed(GPU, handed_over=950, together=600), "lighter augmentations"),
        (changed(GPU, handed_over=870, read=900), "The bus"),
        # 700 pairs/s are 0.8 of what the CPU time allows, or a little less.
        (changed(GPU, by_cpu=874, handed_over=990), "fewer processes"),
        (changed(GPU, by_cpu=876), "lighter augmentations"),
        (changed(GPU, by_cpu=800, loader_threads=7), "Only 7 of 8 cores"),
        (changed(GPU, loader_threads=7), "lighter augmentations"),
        (CPU, "--backend torch"),
        # Of the 1/800 s that a pair takes, 1/1000 is the features; or 1/4000, and the rest augmentations.
        (changed(CPU, features=1000, torch_engine=500.0), "needs as well: use a GPU"),
        (changed(CPU, torch_engine=500.0), "Augmentations .* lighter augmentations"),
        (changed(CPU, loader_threads=4), "Only 4 of 8 cores"),
        # Of the 1/800 s that a pair takes, 1/1000 is reading; without it, 1/4000 is left.
        (changed(CPU, codec="ogg", read=1000, handed_over=1000), "Decoding ogg .* --codec wav"),
    ],
)
def test_the_advice_is_of_the_lowest_ceiling(facts: Facts, advice: str) -> None:
    assert re.search(advice, advise(facts))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"together": 970, "fed": 0.97, "spread": 0.02}, "^Nothing to change"),
        ({"together": 990, "fed": 0.99, "loader": 900}, "^Nothing to change"),
        ({"together": 970, "fed": 0.97, "spread": 0.03}, "^Not certain"),
        ({"together": 920, "fed": 0.92, "spread": 0.1}, "^Not certain"),
        ({"together": 500, "fed": 0.5, "loader": 1100, "waiting": 0.5}, "^Training waits 50% .* lighter"),
        ({"together": 500, "fed": 0.5, "waiting": 0.02}, "shares the GPU with the loader.* lighter"),
    ],
)
def test_whether_there_is_anything_to_change_is_told_by_what_both_do_together(
    changes: dict[str, Any], says: str
) -> None:
    assert re.search(says, advise(changed(GPU, **changes)))


def test_a_disk_that_the_loader_outran_is_no_cause_but_is_warned_of() -> None:
    slow = changed(GPU, disk=300)
    assert "lighter augmentations" in advise(slow)
    assert "which allows 300 pairs/s" in advise(slow)
    fed = changed(slow, fed=0.99, together=990)
    assert re.search("^Nothing to change.* which allows 300", advise(fed))
    assert "disk" not in advise(changed(slow, cold=False))


def test_what_training_refuses_is_refused(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=1, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="batch_size = 1 must be at least 2"):
        examine(setup, "none", "resnet18", 1, Timing())


def test_everything_on_the_way_is_measured(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "training_step", lambda *arguments: lambda views: None)
    setup = prepare(shard_set, batch_size=2, device=torch.device("cpu"), loader_threads=1)
    found = examine(setup, "none", "resnet18", 2, Timing(windows=1, seconds=0.05))
    assert set(found.rates) == set(STAGES.values())
    assert min(found.rates.values()) > 0
    assert (found.codec, found.device, found.loader_threads, found.cores) == ("wav", "cpu", 1, 2)
    assert 0 < found.waiting <= 1
    assert found.fed == found.rates[doctor.TOGETHER] / found.rates[doctor.TRAINING]
