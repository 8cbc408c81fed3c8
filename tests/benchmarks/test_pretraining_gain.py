from pathlib import Path

import numpy as np
import pytest

from benchmarks import pretraining_gain as gain
from siamusic_fast.config import Architecture, MelConfig, PretrainConfig
from siamusic_fast.evaluation.measures import compared
from siamusic_fast.evaluation.probe import ProbeResult
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


def probed(right: int) -> ProbeResult:
    """Return what is right about so many of 4 tracks, beside a random encoder at 3 and an initial at 1."""
    values = {"pretrained": right / 4, "random": 3 / 4, "initial": 1 / 4}
    samples = np.zeros(2)
    measures = tuple(
        compared(name, name, {one: (value, samples) for one, value in values.items()}, [""] * 4, 4)
        for name in ("knn", "linear")
    )
    return ProbeResult(
        folder=Path("probe"),
        data="fma",
        architecture=Architecture("resnet18"),
        checkpoint="last",
        epoch=1,
        pretrained_on=("training",),
        target="class",
        scored_on="test",
        tracks=4,
        chance=0.5,
        probes={},
        measures=measures,
        label_curve=(),
    )


def test_a_table_has_each_seed_and_the_means(shard_set: ShardSet) -> None:
    result = gain.Gain(config=TINY, shard_set=shard_set, probed=(probed(4), probed(2)))
    assert gain.table(result).splitlines()[2:] == [
        "| 3 | 100.0% | 75.0% | 25.0% | 100.0% | 75.0% | 25.0% | +25.0 |",
        "| 4 | 50.0% | 75.0% | 25.0% | 50.0% | 75.0% | 25.0% | -25.0 |",
        "| **mean** | **75.0%** | **75.0%** | **25.0%** | **75.0%** | **75.0%** | **25.0%** | **+0.0** |",
    ]
    assert result.mean_over_initial == pytest.approx(0.5)


@pytest.mark.slow
def test_the_page_has_the_figures_of_each_seed_and_their_mean(tmp_path: Path) -> None:
    result = gain.measure(tmp_path, TINY, procs=2)
    linear = [probed.measure("linear").values for probed in result.probed]
    gains = [values["pretrained"] - values["random"] for values in linear]
    assert result.mean == pytest.approx(sum(gains) / 2)
    lines = gain.table(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 3", "| 4", "| **mean**"]
    for line, values, added in zip(lines[2:], linear, gains, strict=False):
        assert f"| {values['pretrained']:.1%} | {values['random']:.1%} |" in line
        assert line.endswith(f"| {100 * added:+.1f} |")
    page = gain.page(result, {"cpu": "Abacus", "cores": 2, "torch": "0"})
    assert f"**{100 * result.mean:+.1f} points**" in page
    assert "Abacus, 2 cores" in page

    checkpoints = [tmp_path / "gain" / f"seed-{seed}" / "checkpoint.pt" for seed in TINY.seeds]
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert gain.measure(tmp_path, TINY).probed == result.probed
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
