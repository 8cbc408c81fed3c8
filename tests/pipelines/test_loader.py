import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.loader import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.shards.manifest import NORMALISATION, ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.test_mel import torchaudio_log_mel

MEL = MelConfig(seconds=1.0)
IN_DECIBELS = Normalisation(0.0, 1.0)


def labels(loader: LabelledLoader | TrackLoader) -> list[int]:
    """Return the labels of one epoch."""
    return [int(label) for _, batch in loader for label in batch]


def two_views(shard_set: ShardSet, **options: Any) -> TwoViewLoader:
    return TwoViewLoader(shard_set, **{"mel": MEL, "batch_size": 4, "seed": 3, **options})


def flat(loader: TwoViewLoader) -> torch.Tensor:
    """Return all views of one epoch."""
    return torch.stack([torch.cat(views) for views in loader])


def test_two_views_have_the_documented_shape_and_are_normalised(numbered: ShardSet) -> None:
    views = flat(two_views(numbered, recipe="none"))
    assert views.shape == (5, 8, 1, 48, MEL.frames)
    assert views.dtype == torch.float32
    assert abs(float(views.mean())) < 0.05
    assert abs(float(views.std()) - 1) < 0.05


def test_without_augmentation_the_views_are_equal_and_with_it_they_differ(numbered: ShardSet) -> None:
    assert all(torch.equal(*views) for views in two_views(numbered, recipe="none"))
    for recipe in ("image", "audio"):
        for view_1, view_2 in two_views(numbered, recipe=recipe):
            assert all(not torch.equal(a, b) for a, b in zip(view_1, view_2, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_an_epoch_without_overlap_and_with_equally_many_batches(
    numbered: ShardSet, world_size: int
) -> None:
    loaders = [
        LabelledLoader(
            numbered, mel=MEL, normalisation=IN_DECIBELS, batch_size=4, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {23 // world_size // 4}
    orders = []
    for _ in range(3):
        epoch = [label for loader in loaders for label in labels(loader)]
        assert len(epoch) == 23 // world_size // 4 * 4 * world_size
        assert max(Counter(epoch).values()) == 1
        orders.append(tuple(epoch))
    assert len(set(orders)) == 3


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 100), (2, 4), (3, 5)])
def test_evaluation_meets_every_track_once_and_in_order(
    numbered: ShardSet, world_size: int, batch_size: int
) -> None:
    def of_rank(rank: int) -> list[int]:
        options: Any = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        loader = TrackLoader(numbered, mel=MEL, normalisation=IN_DECIBELS, crops=1, **options)
        first, second = labels(loader), labels(loader)
        assert first == second
        return first

    found = [label for rank in range(world_size) for label in of_rank(rank)]
    assert found == [int(track.key) for track in read_tracks(numbered.folder)]


def test_crops_of_a_track_reach_from_its_start_to_its_end(numbered: ShardSet, pcm: dict[int, Any]) -> None:
    loader = TrackLoader(numbered, mel=MEL, normalisation=IN_DECIBELS, batch_size=5, crops=3)
    mels, batch_labels = next(iter(loader))
    assert mels.shape == (5, 3, 1, 48, MEL.frames)
    for crops, label in zip(mels, batch_labels, strict=True):
        audio = np.rint(soundfile.read(pcm[int(label)])[0] * 32768).astype(np.int16)
        spare = len(audio) - MEL.samples
        halves = (spare // 2, spare - spare // 2)  # the middle may be rounded either way
        for crop, starts in zip(crops, ((0,), halves, (spare,)), strict=True):
            wanted = [torchaudio_log_mel(audio[start : start + MEL.samples], MEL) for start in starts]
            assert min(float((crop[0] - mels).abs().max()) for mels in wanted) < 1e-3


def test_crops_cover_the_longest_track_by_default(numbered: ShardSet) -> None:
    longest = max(track.seconds for track in read_tracks(numbered.folder))
    assert 1 < longest < 2
    assert TrackLoader(numbered, mel=MEL, normalisation=IN_DECIBELS).crops == 2


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_the_same_seed_gives_the_same_epoch_whatever_the_threads(numbered: ShardSet, recipe: str) -> None:
    first = flat(two_views(numbered, recipe=recipe, threads=1))
    assert torch.equal(first, flat(two_views(numbered, recipe=recipe, threads=3)))
    assert not torch.equal(first, flat(two_views(numbered, recipe=recipe, seed=4)))


@pytest.mark.parametrize("batches", [0, 2, 5, 7])
def test_a_restored_loader_goes_on_as_if_never_stopped(numbered: ShardSet, batches: int) -> None:
    def take(loader: TwoViewLoader, count: int) -> list[tuple[torch.Tensor, ...]]:
        taken: list[tuple[torch.Tensor, ...]] = []
        while len(taken) < count:
            for views in loader:
                taken.append(views)
                if len(taken) == count:
                    break
        return taken

    stopped = two_views(numbered)
    take(stopped, batches)
    state = stopped.state_dict()
    expected = take(stopped, 6)
    fresh = two_views(numbered)
    fresh.load_state_dict(state)
    for wanted, found in zip(expected, take(fresh, 6), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_batch_stays_what_it_was_while_others_follow(numbered: ShardSet) -> None:
    loader = two_views(numbered)
    batches = [(view, view.clone()) for view, _ in loader]
    list(loader)
    assert all(torch.equal(view, copy) for view, copy in batches)


def test_a_small_labelled_split_is_one_batch(numbered: ShardSet) -> None:
    loader = LabelledLoader(numbered, mel=MEL, normalisation=IN_DECIBELS, batch_size=64)
    assert sorted(labels(loader)) == list(range(23))


def test_a_classifier_never_meets_an_unlabelled_track(shard_set: ShardSet) -> None:
    splits = ("training", "validation", "test")
    unlabelled = sum(track.genre == "" for track in read_tracks(shard_set.folder))
    loader = TrackLoader(shard_set, splits=splits, normalisation=IN_DECIBELS, crops=1)
    found = labels(loader)
    assert unlabelled == 3
    assert len(found) == 33
    assert min(found) >= 0
    assert len(two_views(shard_set, splits=splits, batch_size=36)) == 1


def test_constants_are_kept_beside_the_shards_and_serve_again(numbered: ShardSet) -> None:
    first = estimate(numbered, MEL)
    kept = numbered.path(NORMALISATION).read_bytes()
    assert estimate(numbered, MEL) == first
    assert numbered.path(NORMALISATION).read_bytes() == kept
    finer = estimate(numbered, MelConfig(seconds=1.0, n_mels=96))
    assert finer != first
    assert estimate(numbered, MEL) == first


def test_constants_of_padded_tracks_are_not_those_of_repeated_ones(numbered: ShardSet) -> None:
    mel = MelConfig(seconds=1.9)  # of 1 to 2 s
    repeated, padded = estimate(numbered, mel), estimate(numbered, mel, short_tracks="pad")
    assert padded.mean < repeated.mean - 1  # in dB: some of it is silence
    with two_views(numbered, mel=mel, short_tracks="pad") as loader:
        assert loader.normalisation == padded


def test_constants_that_were_kept_before_short_tracks_were_told_apart_are_of_repeated_ones(
    numbered: ShardSet,
) -> None:
    mel = MelConfig(seconds=1.8)
    repeated = estimate(numbered, mel)
    entries = json.loads(numbered.path(NORMALISATION).read_text())
    del entries[-1]["key"]["short_tracks"]
    former = json.dumps(entries)
    numbered.path(NORMALISATION).write_text(former)
    assert estimate(numbered, mel) == repeated
    assert numbered.path(NORMALISATION).read_text() == former
    assert estimate(numbered, mel, short_tracks="pad") != repeated


def test_constants_of_white_noise_are_those_of_its_spectrum(numbered: ShardSet) -> None:
    # White noise of variance s^2 has a power of s^2 sum(w^2) in every bin, exponentially distributed, so that
    # a bin alone lies 2.5 dB lower in the mean of its decibels and deviates by 5.6 dB.
    mel = MelConfig(seconds=1.0, n_mels=10)
    filters = _mel_filters(mel)
    window = torch.hann_window(mel.n_fft).square().sum()
    power = 0.1**2 * window * filters.sum(dim=0)
    mean, deviation = estimate(numbered, mel)
    assert mean == pytest.approx(float((10 * power.log10()).mean()), abs=0.7)
    assert 1 < deviation < 5.6


def _mel_filters(mel: MelConfig) -> torch.Tensor:
    filters: torch.Tensor = torchaudio.functional.melscale_fbanks(
        mel.n_fft // 2 + 1, 0.0, mel.f_max, mel.n_mels, mel.sample_rate
    )
    return filters


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 24}, "A batch of 24 does not fit the 23 tracks: use --batch-size 23"),
        ({"batch_size": 12, "world_size": 2}, "the 11 tracks that each of 2 processes gets"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"batch_size": 4, "world_size": 24}, "23 such tracks, too few for 24 processes"),
        ({"mel": MelConfig(seconds=2.5)}, r"A crop of 2.5 s is longer than the longest track in .*, 2.0 s"),
        ({"short_tracks": "drop"}, "short_tracks = 'drop' is unknown: choose repeat or pad"),
        ({"dtype": torch.float16}, "dtype = torch.float16 must be one of torch.float32, torch.bfloat16"),
        ({"crops": "other"}, "crops = 'other' is unknown: choose same or independent"),
        ({"crops": "independent", "max_distance": -1.0}, "max_distance = -1 s must not be negative"),
        ({"max_distance": 1.0}, "max_distance = 1 s is for independent crops only"),
        ({"recipe": "jazz"}, "'jazz' is unknown"),
    ],
)
def test_what_does_not_fit_the_shards_is_refused_at_once(
    numbered: ShardSet, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        two_views(numbered, **options)


def test_an_unknown_split_is_refused_with_those_there_are(numbered: ShardSet) -> None:
    with pytest.raises(DataError, match=r"'test'.*training"):
        two_views(numbered, splits=["test"])


def test_a_closed_loader_says_so(numbered: ShardSet) -> None:
    with two_views(numbered) as loader:
        next(iter(loader))
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))
