import pytest
import torch

from siamusic_fast.bench.embed import measure


def test_the_whole_work_is_compared_with_what_its_parts_allow() -> None:
    found = measure("resnet18", torch.device("cpu"), tracks=2, windows=1)
    of = {one.name: one for one in found.measurements}
    assert all(one.unit == "tracks/s" and one.median > 0 for one in of.values())
    for name, reading in (("MP3s", "decoding"), ("shards", "reading")):
        parts = (of[f"alone: {part}, {name}"].median for part in (reading, "spectrograms", "network"))
        cores = float(of[f"limit of {name}"].setting.split()[0])
        assert of[f"limit of {name}"].median == pytest.approx(cores / sum(1 / rate for rate in parts))
    assert [ratio.name for ratio in found.ratios][::2] == [
        "embedding MP3s / limit of MP3s",
        "embedding shards / limit of shards",
    ]
