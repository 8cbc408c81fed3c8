import dataclasses
import re
from pathlib import Path

import pytest
import torch

from siamusic_fast.bench import train
from siamusic_fast.bench.doctor import Facts, _bytes_read, advise, examine
from siamusic_fast.bench.stages import prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.shards.fma import load_fma
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack

GPU = Facts(
    training=1000,
    loader=800,
    together=700,
    crops=9000,
    disk=9000,
    cold=True,
    other_backend=None,
    codec="wav",
    device="cuda",
    threads=8,
    cores=8,
)
CPU = dataclasses.replace(GPU, device="cpu", other_backend=1600.0)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (dataclasses.replace(GPU, loader=1100), "Nothing to change"),
        (dataclasses.replace(GPU, codec="flac", crops=850), "Decoding flac .* --codec wav"),
        (dataclasses.replace(GPU, disk=700), "The disk holds"),
        (dataclasses.replace(GPU, threads=2), "Only 2 of 8 cores .* leave --threads out"),
        (dataclasses.replace(GPU, crops=850), "more CPU cores"),
        (GPU, "lighter recipe"),
        (CPU, "--backend torch"),
        (dataclasses.replace(CPU, other_backend=500.0), "use a GPU"),
    ],
)
def test_the_advice_fits_what_holds_the_loader_up(facts: Facts, advice: str) -> None:
    assert re.search(advice, advise(facts))


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
    rates = (found.training, found.loader, found.together, found.crops, found.disk, found.other_backend)
    assert all(rate is not None and rate > 0 for rate in rates)
    assert (found.codec, found.device, found.threads) == ("wav", "cpu", 1)


def test_one_crop_is_read_of_a_wav_track_and_all_of_one_that_is_decoded(
    shard_set: ShardSet, fma_corpus: Path, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    assert _bytes_read(prepare(shard_set, batch_size=2, device=cpu)[0]) == 2 * 5 * 22_050
    flac = pack(load_fma(fma_corpus), tmp_path / "flac", PackConfig(codec="flac"), workers=2)
    setup, _ = prepare(flac, batch_size=2, device=cpu)
    tars = [Path(tar).stat().st_size for tar in setup.source.tars]
    assert _bytes_read(setup) == sum(tars) / setup.source.tracks
