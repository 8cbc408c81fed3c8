import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import pretraining_gain as gain
from siamusic_fast.config import Architecture, MelConfig, PretrainConfig
from siamusic_fast.evaluation.probe import EncoderProbes, ProbeResult
from siamusic_fast.evaluation.scores import scores
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.synthetic.corpus import SyntheticCorpus

TINY = gain.GainConfig(
    corpus=SyntheticCorpus(tracks_per_genre=3, seconds=6.0),
    pretrain=PretrainConfig(
        mel=MelConfig(seconds=0.5, n_mels=16, hop_length=512),
        backend="torch",
        backbone="resnet18",
        epochs=1,
        batch_size=4,
        knn_every=0,
    ),
    seeds=(3, 4),
)


def probes(right: int) -> EncoderProbes:
    """Return what an encoder came to that is right about so many of 4 tracks."""
    found = scores(
        torch.tensor([0] * right + [1] * (4 - right)), torch.zeros(4, dtype=torch.int64), ["a", "b"]
    )
    return EncoderProbes(knn=found, linear=found, penalty=1.0)


def test_a_table_has_each_seed_and_the_means(shard_set: ShardSet) -> None:
    one = ProbeResult(
        folder=Path("probe"),
        data="fma",
        architecture=Architecture("resnet18"),
        checkpoint="last",
        epoch=1,
        pretrained_on=("training",),
        pretrained=probes(4),
        random=probes(3),
        initial=probes(1),
    )
    two = dataclasses.replace(one, pretrained=probes(2))
    result = gain.Gain(config=TINY, shard_set=shard_set, probed=(one, two))
    assert gain.table(result).splitlines()[2:] == [
        "| 3 | 100.0% | 75.0% | 25.0% | 100.0% | 75.0% | 25.0% | +25.0 |",
        "| 4 | 50.0% | 75.0% | 25.0% | 50.0% | 75.0% | 25.0% | -25.0 |",
        "| **mean** | **75.0%** | **75.0%** | **25.0%** | **75.0%** | **75.0%** | **25.0%** | **+0.0** |",
    ]
    assert result.mean_over_initial == pytest.approx(0.5)


@pytest.mark.slow
def test_the_page_has_the_figures_of_each_seed_and_their_mean(tmp_path: Path) -> None:
    result = gain.measure(tmp_path, TINY, procs=2)
    gains = [probed.pretrained.linear.accuracy - probed.random.linear.accuracy for probed in result.probed]
    assert result.mean == pytest.approx(sum(gains) / 2)
    lines = gain.table(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 3", "| 4", "| **mean**"]
    for line, probed, added in zip(lines[2:], result.probed, gains, strict=False):
        assert f"| {probed.pretrained.linear.accuracy:.1%} | {probed.random.linear.accuracy:.1%} |" in line
        assert line.endswith(f"| {100 * added:+.1f} |")
    page = gain.page(result, {"cpu": "Abacus", "cores": 2, "torch": "0"})
    assert f"**{100 * result.mean:+.1f} points**" in page
    assert "Abacus, 2 cores" in page

    checkpoints = [tmp_path / "gain" / f"seed-{seed}" / "checkpoint.pt" for seed in TINY.seeds]
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert gain.measure(tmp_path, TINY).probed == result.probed
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
