"""Which seconds of a track are shown: of tracks too short for a crop, and of two crops of one track."""

from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.source import Source
from siamusic_fast.pipelines.torch_source import Tracks
from siamusic_fast.pipelines.trace import trace
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.both_backends import BACKENDS, IN_DECIBELS, MEL, labelled, two_views, whole_tracks
from tests.pipelines.conftest import RATE, PackAudio
from tests.pipelines.graphs import Array, distance, limit, traced
from tests.pipelines.reference import crop, pcm_of
from tests.pipelines.test_mel import torchaudio_log_mel

SHORT = ("repeat", "pad")


@pytest.fixture(scope="session", params=["wav", "flac"])
def short_and_long(request: pytest.FixtureRequest, pack_audio: PackAudio) -> ShardSet:
    """Noise of 0.21 to 0.95 s, and of 1.3 s, in either codec; crops are of 1 s."""
    rng = np.random.default_rng(0)
    lengths = [0.21, 0.26, 0.5, 0.51, 0.95, 1.3]
    tracks = {f"{row:06d}": 0.1 * rng.standard_normal(round(s * RATE)) for row, s in enumerate(lengths)}
    return pack_audio(tracks, min_seconds=0.2, codec=request.param)


@pytest.fixture
def lengthened(short_and_long: ShardSet) -> dict[str, list[Array]]:
    """The audio of `short_and_long` as either way of lengthening makes it, in numpy."""
    tracks = pcm_of(short_and_long)
    return {
        "repeat": [np.tile(audio, 2 ** _doublings(audio)) for audio in tracks],
        "pad": [np.pad(audio, (0, max(0, MEL.samples - len(audio)))) for audio in tracks],
    }


@pytest.mark.parametrize("short_tracks", SHORT)
@pytest.mark.parametrize("recipe", ["none", "gain(p=0)"])
def test_short_tracks_are_repeated_or_padded(
    short_and_long: ShardSet, lengthened: dict[str, list[Array]], short_tracks: str, recipe: str
) -> None:
    options: dict[str, Any] = {"mel": MEL, "normalisation": IN_DECIBELS, "crops": "independent"}
    for seed in range(3):
        views = trace(short_and_long, recipe=recipe, short_tracks=short_tracks, seed=seed, **options).views
        for view in views:
            for wave, audio, at in zip(view.waves, lengthened[short_tracks], view.positions, strict=True):
                np.testing.assert_array_equal(wave, crop(audio, MEL.samples, at) / 32768)


@pytest.mark.parametrize("short_tracks", SHORT)
def test_short_tracks_are_lengthened_alike_by_the_torch_backend(
    short_and_long: ShardSet, lengthened: dict[str, list[Array]], short_tracks: str
) -> None:
    shards = short_and_long.shards(["training"])
    source = Source(shard_set=short_and_long, shards=shards, shuffle=False, short_tracks=short_tracks)
    tracks = Tracks(source, MEL.samples)
    for position in (0.0, 0.3, 1.0):
        crops = tracks.crops(np.arange(6), np.full(6, position), MEL.samples)
        for found, audio in zip(crops.pcm, lengthened[short_tracks], strict=True):
            np.testing.assert_array_equal(found, crop(audio, MEL.samples, position))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("short_tracks", SHORT)
def test_evaluation_lengthens_short_tracks_as_training_does(
    short_and_long: ShardSet, lengthened: dict[str, list[Array]], short_tracks: str, backend: str
) -> None:
    loader = whole_tracks(backend, short_and_long, short_tracks=short_tracks, crops=2, batch_size=6)
    ((mels, _),) = list(loader)
    for crops, audio in zip(mels[:, :, 0], lengthened[short_tracks], strict=True):
        for image, position in zip(crops, (0, 1), strict=True):
            expected = torchaudio_log_mel(crop(audio, MEL.samples, position), MEL)
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("short_tracks", SHORT)
def test_training_shows_silence_only_where_tracks_are_padded(
    short_and_long: ShardSet, short_tracks: str, backend: str
) -> None:
    options: dict[str, Any] = {"short_tracks": short_tracks, "batch_size": 6}
    for loader in (
        two_views(backend, short_and_long, recipe="none", **options),
        labelled(backend, short_and_long, **options),
    ):
        ((mels, _),) = list(loader)
        silent = (mels[:, 0] < -99.9).all(dim=1).sum(dim=1)
        # 0.21 to 1.3 s: of five tracks an end is silent, which a frame reaches half a window into.
        wanted = [int((1 - s) * MEL.frames) for s in (0.95, 0.51, 0.5, 0.26, 0.21)]
        found = sorted(int(frames) for frames in silent)
        if short_tracks == "repeat":
            assert found == [0] * 6
        else:
            np.testing.assert_allclose(found, [0, *wanted], atol=2)


@pytest.fixture(scope="module")
def long(pack_audio: PackAudio) -> ShardSet:
    """One track of 11 s."""
    return pack_audio({"000000": 0.1 * np.random.default_rng(0).standard_normal(11 * RATE)})


def positions(shard_set: ShardSet, **pairing: Any) -> tuple[Array, Array]:
    """Return where the crops of 1 s of 2,000 pairs of views lie, from 0 to 1."""
    mel = MelConfig(seconds=1.0, n_mels=4, hop_length=11_000)
    found = traced(shard_set, (), mel, Pairing(**pairing), batches=4, batch_size=500)
    return found["view_1.position"].ravel(), found["view_2.position"].ravel()


def test_views_of_the_same_crop_have_one_position_anywhere_in_the_track(long: ShardSet) -> None:
    first, second = positions(long)
    np.testing.assert_array_equal(first, second)
    assert distance(first, lambda x: x) < limit(2000)


def test_independent_crops_lie_anywhere_without_regard_to_each_other(long: ShardSet) -> None:
    first, second = positions(long, crops="independent")
    assert (first != second).all()
    for found in (first, second):
        assert distance(found, lambda x: x) < limit(2000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(2000)
    # The distance of two points drawn from [0, 1] is below d with a probability of 1 - (1 - d)^2.
    assert distance(abs(first - second), lambda d: 1 - (1 - d) ** 2) < limit(2000)


def test_independent_crops_start_no_further_apart_than_asked_for(long: ShardSet) -> None:
    first, second = positions(long, crops="independent", max_distance=2.5)
    seconds = abs(first - second) * (11 - 1)
    assert seconds.max() <= 2.5 + 1e-3
    assert seconds.max() > 2.4
    assert distance(first, lambda x: x) < limit(2000)
    # Away from the ends of the track, all distances are as likely.
    inner = (first > 0.25) & (first < 0.75)
    assert distance(seconds[inner], lambda d: d / 2.5) < limit(int(inner.sum()))


def test_the_largest_distance_holds_for_tracks_of_any_length(numbered: ShardSet) -> None:
    seconds = np.array([track.seconds for track in read_tracks(numbered.folder)])
    found = []
    for seed in range(3):
        view_1, view_2 = trace(
            numbered,
            recipe="none",
            mel=MelConfig(seconds=0.5),
            normalisation=IN_DECIBELS,
            crops="independent",
            max_distance=0.2,
            tracks=23,
            seed=seed,
        ).views
        found.append(abs(view_1.positions - view_2.positions) * (seconds - 0.5))
    assert np.max(found) <= 0.2 + 1e-3
    assert np.max(found) > 0.15


@pytest.fixture(scope="module")
def sweeps(pack_audio: PackAudio) -> ShardSet:
    """Eight sweeps from 500 to 6,500 Hz within 12 s: the loudest frequency tells the time."""
    time = np.arange(12 * RATE) / RATE
    sweep = 0.5 * np.sin(2 * np.pi * (500 * time + 500 * time**2 / 2))
    return pack_audio({f"{row:06d}": (1 - 0.05 * row) * sweep for row in range(8)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_distance", [None, 1.0])
def test_views_show_independent_moments_within_the_largest_distance(
    sweeps: ShardSet, backend: str, max_distance: float | None
) -> None:
    mel = MelConfig(seconds=0.25, n_fft=2048, n_mels=256, f_max=8000)
    options: dict[str, Any] = {"recipe": "none", "mel": mel, "batch_size": 8, "crops": "independent"}
    loader = two_views(backend, sweeps, max_distance=max_distance, **options)
    pairs = [[_seconds_of(view, mel) for view in views] for _ in range(25) for views in loader]
    moments: Array = np.array(pairs).transpose(1, 0, 2).reshape(2, -1)
    first, second = moments[0], moments[1]
    assert len(first) == 200
    for found in (first, second):
        assert distance(found / 11.75, lambda x: np.clip(x, 0, 1)) < limit(200) + 0.01
    apart = abs(first - second)
    if max_distance is None:
        assert distance(apart / 11.75, lambda d: 1 - (1 - np.clip(d, 0, 1)) ** 2) < limit(200) + 0.02
    else:
        assert 0.9 < apart.max() < max_distance + 0.15  # a band is up to 0.12 s wide


def _seconds_of(view: torch.Tensor, mel: MelConfig) -> Array:
    """Return when the crops of a sweep begin, from the loudest band in their middle."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + mel.f_max / 700), 258) / 2595) - 1)
    loudest = view[:, 0, :, mel.frames // 2].argmax(dim=1).numpy()
    return np.asarray((edges[1:-1][loudest] - 500) / 500 - mel.seconds / 2)


def _doublings(audio: Array) -> int:
    return max(0, int(np.ceil(np.log2(MEL.samples / len(audio)))))
