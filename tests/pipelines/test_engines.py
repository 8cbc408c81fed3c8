"""Both engines give the same views of the same plan, whatever the recipe, codec, crops and rates."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import LabelledLoader, TrackLoader
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.engine import TorchEngine
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.helpers import (
    BACKENDS,
    MEL,
    RATE,
    Array,
    config,
    first_views,
    plan_of,
    take,
    two_views,
    views_as_on_gpu,
)
from tests.pipelines.reference import rounding_decibels

RECIPES = ("none", "image", "audio", "both", "rrc,tilt,timemask,griddistortion", "noise,gain,wavemix,stretch")
CODECS = ("wav", "flac", "ogg")
CROPS: tuple[dict[str, Any], ...] = (
    {"crops": "same"},
    {"crops": "independent"},
    {"crops": "independent", "max_distance": 0.25},
)
SHORT = ("repeat", "pad")
RATES = {RATE: MEL, 16_000: MelConfig(sample_rate=16_000, seconds=1.0, f_max=6_000)}
CASES = list(product(RECIPES, CODECS, RATES, SHORT, range(3)))
SOME = [case for place, case in enumerate(CASES) if place % 7 == 3]
"""Every pair of two settings is among them."""


def assert_close(found: Array, wanted: Array, recipe: str, rate: int, std: float | Array) -> None:
    """Compare the views of two engines, [..., n_mels, frames], whose pixels are `std` dB (or by band)."""
    difference = std * abs(found - wanted)
    if recipe in ("audio", "both"):  # two resamplers shift the pitch, and differ at the ends of a crop
        assert np.median(difference) < 5e-3
        assert np.quantile(difference, 0.99) < 0.5
    elif rate != RATE:  # two resamplers that differ at the ends of a crop
        assert np.median(difference) < 2e-3
        assert np.quantile(difference, 0.99) < 0.3
    else:
        allowed = rounding_decibels(std * wanted, axis=(-2, -1))  # images mix frames: of the whole image
        assert (difference < np.maximum(allowed, 5e-3 if "rrc" in recipe else 1e-3)).all()


@pytest.mark.parametrize("rate", [RATE, 16_000])
@pytest.mark.parametrize("recipe", ["both", "pitch(p=1),stretch(p=1),noise(p=1)", "stretch(p=1),gain(p=1)"])
def test_torch_gives_rows_that_are_computed_together_as_on_a_gpu_what_it_gives_each_alone(
    numbered: ShardSet, recipe: str, rate: int
) -> None:
    frontend = Frontend(mel=RATES[rate], mean=0.0, std=1.0)
    plan = plan_of(numbered, recipe, batch_size=23, frontend=frontend)
    batch, rows = plan.batch((0, 0)), slice(0, 23)
    pcm = torch.zeros(23, int(batch.spans[0].samples.max()), dtype=torch.int16)
    Reader(plan.tracks, frontend).read(batch.spans[0], rows, pcm.numpy())
    engine = TorchEngine(plan, torch.device("cpu"))
    for view in batch.views:
        together = engine._spectrograms(pcm, view, rows)
        alone = torch.cat([engine._spectrograms(pcm, view, slice(row, row + 1)) for row in range(23)])
        assert (together - alone).abs().max() < 1e-3


def test_some_cases_have_every_pair_of_settings() -> None:
    for one, other in product(range(5), range(5)):
        assert {(case[one], case[other]) for case in SOME} == {(case[one], case[other]) for case in CASES}


@pytest.mark.parametrize(
    ("recipe", "codec", "rate", "short_tracks", "crops"),
    [
        case if case in SOME else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
    ],
)  # fmt: skip
def test_engines_give_the_same_views_of_the_same_plan(
    short_and_long: dict[str, ShardSet], recipe: str, codec: str, rate: int, short_tracks: str, crops: int
) -> None:
    std = 10.0
    frontend = Frontend(mel=RATES[rate], mean=-40.0, std=std, short_tracks=short_tracks)
    settings: dict[str, Any] = {"frontend": frontend, "batch_size": 9, **CROPS[crops]}
    shard_set = short_and_long[codec]
    dali, ours = (
        first_views(two_views(shard_set, recipe, backend=backend, **settings)) for backend in BACKENDS
    )
    for found, wanted in zip(dali, ours, strict=True):
        assert_close(found, wanted, recipe, rate, std)
    as_on_gpu = views_as_on_gpu(plan_of(shard_set, recipe, **settings))
    for found, wanted in zip(as_on_gpu, dali, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", ["none", "image"])
def test_engines_normalize_each_band_by_its_own_mean_and_deviation(
    short_and_long: dict[str, ShardSet], recipe: str
) -> None:
    means, stds = np.linspace(-30, -60, MEL.n_mels), np.linspace(8, 12, MEL.n_mels)
    frontend = Frontend(mel=MEL, mean=tuple(means.tolist()), std=tuple(stds.tolist()))
    settings: dict[str, Any] = {"frontend": frontend, "batch_size": 9}
    dali, ours = (
        first_views(two_views(short_and_long["wav"], recipe, backend=backend, **settings))
        for backend in BACKENDS
    )
    as_on_gpu = views_as_on_gpu(plan_of(short_and_long["wav"], recipe, **settings))
    for found, wanted, on_gpu in zip(dali, ours, as_on_gpu, strict=True):
        assert_close(found, wanted, recipe, RATE, stds[:, None])
        np.testing.assert_allclose(on_gpu, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("short_tracks", SHORT)
@pytest.mark.parametrize("rate", RATES)
def test_engines_give_the_same_crops_of_whole_tracks_and_of_labelled_ones(
    short_and_long: dict[str, ShardSet], codec: str, short_tracks: str, rate: int
) -> None:
    frontend = Frontend(mel=RATES[rate], mean=-40.0, std=10.0, short_tracks=short_tracks)
    pairs = []
    for backend in BACKENDS:
        settings = config(frontend=frontend, backend=backend)
        with (
            LabelledLoader(short_and_long[codec], **settings) as labelled,
            TrackLoader(short_and_long[codec], crops=3, **settings) as tracks,
        ):
            pairs.append([*take(tracks, 3), *take(labelled, 4)])
    for (dali, dali_labels), (ours, our_labels) in zip(*pairs, strict=True):
        assert torch.equal(dali_labels, our_labels)
        assert_close(dali.numpy(), ours.numpy(), "none", rate, 10.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_a_global_batch_is_the_same_bit_for_bit_however_it_is_shared(
    many: ShardSet, recipe: str, backend: str
) -> None:
    frontend = Frontend(mel=MelConfig(seconds=0.25, n_mels=16), mean=-40.0, std=10.0)

    def global_batch(world_size: int) -> list[torch.Tensor]:
        parts = []
        for rank in range(world_size):
            loader = two_views(
                many, recipe, crops="independent", frontend=frontend, backend=backend, rank=rank,
                world_size=world_size, batch_size=128 // world_size, loader_threads=1 + rank,
            )  # fmt: skip
            with loader:
                parts.append(
                    take(loader, 2)[1]
                )  # of the second batch: rank 0 alone would have it in its first
        return [torch.cat([part[view] for part in parts]) for view in range(2)]

    whole = global_batch(1)
    for world_size in (2, 4):
        assert all(map(torch.equal, global_batch(world_size), whole))


@pytest.mark.parametrize("recipe", ["audio", "image"])
def test_buffers_are_not_written_to_while_dali_reads_them(many: ShardSet, recipe: str) -> None:
    # Tiny batches and many threads: a ring that is too short would show other batches' samples.
    frontend = Frontend(mel=MelConfig(seconds=0.25, n_mels=16), mean=-40.0, std=10.0)
    settings: dict[str, Any] = {"frontend": frontend, "batch_size": 2, "crops": "independent"}
    dali, ours = (
        two_views(many, recipe, backend=backend, loader_threads=threads, **settings)
        for backend, threads in (("dali", 8), ("torch", 1))
    )
    with dali, ours:
        for number, (found, wanted) in enumerate(zip(dali, ours, strict=True)):
            for one, other in zip(found, wanted, strict=True):
                difference = 10.0 * (one - other).abs()
                assert float(difference.median()) < 0.05, f"batch {number}"
                assert recipe == "audio" or float(difference.max()) < 1e-3, f"batch {number}"
        assert number == 149


def test_slowed_crops_shorter_than_half_a_window_are_reflected_again(numbered: ShardSet) -> None:
    # A quarter of 661 samples are fewer than the 256 that lie before the first frame's center.
    frontend = Frontend(mel=MelConfig(seconds=0.03), mean=0.0, std=1.0)
    recipe = "stretch(p=1,min_rate=0.25,max_rate=0.3)"
    dali, ours = (
        first_views(two_views(numbered, recipe, frontend=frontend, batch_size=23, backend=backend))
        for backend in BACKENDS
    )
    np.testing.assert_allclose(dali, ours, rtol=0, atol=1e-3)
