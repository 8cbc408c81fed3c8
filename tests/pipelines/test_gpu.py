"""The GPU backend against the CPU backend: the same graph, so the same batches up to rounding."""

from typing import Any

import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loader import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.shards.manifest import ShardSet

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {
    "mel": MelConfig(seconds=1.0),
    "normalisation": Normalisation(0.0, 1.0),
    "batch_size": 5,
    "seed": 3,
}
DECIBELS = 0.01
"""How far two implementations of an FFT in float32 may be apart."""


@pytest.mark.parametrize("recipe", ["none", "image", "audio"])
def test_views_of_the_gpu_equal_those_of_the_cpu(numbered: ShardSet, recipe: str) -> None:
    on_cpu = TwoViewLoader(numbered, recipe=recipe, device="cpu", **OPTIONS)
    on_gpu = TwoViewLoader(numbered, recipe=recipe, device="cuda", **OPTIONS)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        for wanted, view in zip(expected, found, strict=True):
            assert view.device.type == "cuda"
            torch.testing.assert_close(view.cpu(), wanted, rtol=0, atol=DECIBELS)


@pytest.mark.parametrize("kind", [LabelledLoader, TrackLoader])
def test_labelled_batches_of_the_gpu_equal_those_of_the_cpu(
    numbered: ShardSet, kind: type[LabelledLoader | TrackLoader]
) -> None:
    for (mels, labels), (mels_on_gpu, labels_on_gpu) in zip(
        kind(numbered, device="cpu", **OPTIONS), kind(numbered, device="cuda", **OPTIONS), strict=True
    ):
        assert labels_on_gpu.device.type == "cuda"
        assert torch.equal(labels_on_gpu.cpu(), labels)
        torch.testing.assert_close(mels_on_gpu.cpu(), mels, rtol=0, atol=DECIBELS)


def test_batches_on_the_gpu_stay_what_they_are_while_others_follow(numbered: ShardSet) -> None:
    loader = TwoViewLoader(numbered, recipe="image", device="cuda", **OPTIONS)
    batches = [(view, view.clone()) for view, _ in loader]
    list(loader)
    assert all(torch.equal(view, copy) for view, copy in batches)
