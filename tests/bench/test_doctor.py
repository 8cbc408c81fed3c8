import dataclasses
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.bench import doctor, train
from siamusic_fast.bench.doctor import Facts, _by_cpu, advise, examine
from siamusic_fast.bench.report import Measurement
from siamusic_fast.bench.stages import bytes_read, prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.errors import ConfigError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack

GPU = Facts(
    training=1000,
    loader=800,
    together=700,
    fed=0.7,
    spread=0.03,
    waiting=0.3,
    plan=30_000,
    read=9000,
    handed_over=8000,
    features=4000,
    by_cpu=7000,
    disk=9000,
    cold=True,
    other_backend=None,
    codec="wav",
    device="cuda",
    threads=8,
    cores=8,
)
CPU = dataclasses.replace(GPU, device="cpu", together=440, fed=0.44, other_backend=1600.0)


def at_most(pairs: float) -> str:
    return f"at most {pairs:,.0f} pairs/s"


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (dataclasses.replace(GPU, codec="flac", read=850, disk=9000), "Decoding flac .* --codec wav"),
        (dataclasses.replace(GPU, read=750, disk=750), f"The disk holds .* {at_most(1000)}"),
        (dataclasses.replace(GPU, read=850, threads=2), f"Only 2 of 8 cores .* {at_most(1000)}"),
        (dataclasses.replace(GPU, read=850, threads=7), f"Only 7 of 8 cores .* {at_most(850 * 8 / 7)}"),
        (dataclasses.replace(GPU, read=850), "more CPU cores"),
        (dataclasses.replace(GPU, read=870, training=2000, fed=0.35), f"more CPU .* {at_most(2000)}"),
        (GPU, f"recipe alone: use a lighter recipe.* {at_most(1000)}"),
        (dataclasses.replace(GPU, features=860), f"features alone: .* --seconds.* {at_most(1000)}"),
        (dataclasses.replace(GPU, plan=850), f"Planning, .* {at_most(1000)}"),
        (dataclasses.replace(GPU, loader=5000), f"features and trains: use a lighter .* {at_most(1000)}"),
        (dataclasses.replace(GPU, handed_over=950, together=600), f"lighter recipe.* {at_most(950)}"),
        (dataclasses.replace(GPU, handed_over=870, read=900), f"The bus .* {at_most(900)}"),
        # 700 pairs/s are 0.8 of what the CPU time allows, or a little less.
        (dataclasses.replace(GPU, by_cpu=874, handed_over=990), f"fewer processes .* {at_most(990)}"),
        (dataclasses.replace(GPU, by_cpu=876), "recipe alone"),
        (dataclasses.replace(GPU, by_cpu=800, threads=7), f"Only 7 of 8 cores .* {at_most(800 * 8 / 7)}"),
        (dataclasses.replace(GPU, threads=7), "recipe alone"),
        (CPU, f"--backend torch.* {at_most(1 / (1 / 1000 + 1 / 1600))}"),
        # Of the 1/800 s that a pair takes, 1/1000 is the features; or 1/4000, and the rest augmentations.
        (dataclasses.replace(CPU, features=1000, other_backend=500.0), "needs as well: use a GPU"),
        (
            dataclasses.replace(CPU, other_backend=500.0),
            f"Augmentations .* lighter recipe.* {at_most(1 / (1 / 1000 + 1 / 4000))}",
        ),
        (dataclasses.replace(CPU, threads=4), f"Only 4 of 8 cores .* {at_most(1 / (1 / 1000 + 1 / 1600))}"),
        # Of the 1/800 s that a pair takes, 1/1000 is reading; without it, 1/4000 is left.
        (
            dataclasses.replace(CPU, codec="ogg", read=1000, handed_over=1000),
            f"Decoding ogg .* {at_most(1 / (1 / 1000 + 1 / 4000))}",
        ),
    ],
)
def test_the_advice_is_of_the_lowest_ceiling_and_promises_what_the_others_allow(
    facts: Facts, advice: str
) -> None:
    assert re.search(advice, advise(facts))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"together": 970, "fed": 0.97, "spread": 0.02}, "^Nothing to mend"),
        ({"together": 990, "fed": 0.99, "loader": 900}, "^Nothing to mend"),
        ({"together": 970, "fed": 0.97, "spread": 0.03}, "^Not certain"),
        ({"together": 920, "fed": 0.92, "spread": 0.1}, "^Not certain"),
        ({"together": 500, "fed": 0.5, "loader": 1100, "waiting": 0.5}, "^Training waits 50% .* lighter"),
        ({"together": 500, "fed": 0.5, "waiting": 0.02}, "shares the GPU with the loader.* lighter"),
    ],
)
def test_whether_there_is_anything_to_mend_is_told_by_what_both_do_together(
    changes: dict[str, Any], says: str
) -> None:
    assert re.search(says, advise(dataclasses.replace(GPU, **changes)))


def test_a_disk_that_the_loader_outran_is_no_cause_but_is_warned_of() -> None:
    slow = dataclasses.replace(GPU, disk=300)
    assert "lighter recipe" in advise(slow)
    assert "the disk allows 300 pairs/s" in advise(slow)
    fed = dataclasses.replace(slow, fed=0.99, together=990)
    assert re.search("^Nothing to mend.* the disk allows 300", advise(fed))
    assert "disk" not in advise(dataclasses.replace(slow, cold=False))


def test_the_cpu_time_of_a_pair_is_shared_by_the_threads() -> None:
    loader = Measurement(name="loader", unit="pairs/s", windows=(300.0,), cpu_windows=(4.0,))
    assert _by_cpu(loader, threads=2) == 500  # 2 threads, 4 ms a pair


def test_one_of_several_gpus_has_its_share_of_the_cores(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def no_measuring(*arguments: object, threads: int, **options: object) -> None:
        asked.append(threads)
        raise RuntimeError("far enough")

    monkeypatch.setattr(doctor, "cores", lambda: 8)
    monkeypatch.setattr(doctor, "prepare", no_measuring)
    for threads in (None, 3):
        with pytest.raises(RuntimeError, match="far enough"):
            examine(
                shard_set,
                recipe="none",
                backbone="resnet18",
                batch_size=2,
                device=torch.device("cpu"),
                gpus=2,
                threads=threads,
            )
    assert asked == [4, 3]


def test_what_training_refuses_is_refused(shard_set: ShardSet) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="batch_size = 1 must be at least 2"):
        examine(shard_set, recipe="none", backbone="resnet18", batch_size=1, device=cpu)


def test_everything_on_the_way_is_measured(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_Step", lambda *arguments, **options: lambda views: None)
    found = examine(
        shard_set,
        recipe="none",
        backbone="resnet18",
        batch_size=2,
        device=torch.device("cpu"),
        threads=1,
        timing=Timing(windows=1, seconds=0.05),
    )
    rates = (
        *(found.training, found.loader, found.together, found.plan, found.read, found.handed_over),
        *(found.features, found.by_cpu, found.disk, found.other_backend),
    )
    assert all(rate is not None and rate > 0 for rate in rates)
    assert (found.codec, found.device, found.threads) == ("wav", "cpu", 1)
    assert 0 < found.waiting <= 1
    assert found.fed == found.together / found.training


def test_one_crop_is_read_of_a_wav_track_and_all_of_one_that_is_decoded(
    shard_set: ShardSet, fma_corpus: Path, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    assert bytes_read(prepare(shard_set, batch_size=2, device=cpu)) == 2 * 5 * 22_050
    flac = pack(load_fma(fma_corpus), tmp_path / "flac", PackConfig(codec="flac"), procs=2)
    sizes = []
    for shard in flac.splits["training"]:
        with tarfile.open(flac.path(shard.file)) as tar:
            sizes += [member.size for member in tar if member.name.endswith(".flac")]
    assert bytes_read(prepare(flac, batch_size=2, device=cpu)) == sum(sizes) / len(sizes)
