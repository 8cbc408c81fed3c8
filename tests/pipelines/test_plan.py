"""What a plan decides, in numpy alone: which tracks, which seconds, and on which process."""

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.image_augmentations import Mask
from siamusic_fast.pipelines.loaders import MAX_CROPS, covering_crops
from siamusic_fast.pipelines.ops import MixWaves
from siamusic_fast.pipelines.plan import Batch, Plan, TrackPlan
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.pipelines.tracks import Tracks, open_tracks
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.helpers import IN_DECIBELS, RATE, Array
from tests.pipelines.test_random_numbers import assert_distributed, uniform


@pytest.fixture(scope="module")
def tracks(numbered: ShardSet) -> Tracks:
    return open_tracks(numbered, ["training"])


def repeated(tracks: Tracks, count: int, samples: Array | int) -> Tracks:
    """Return `count` tracks in as many shards as `tracks` are in, `samples` long each."""
    numbers = np.sort(np.resize(np.arange(len(tracks)), count))
    return dataclasses.replace(tracks.only(numbers), samples=np.broadcast_to(samples, count))


def positions(batch: Batch, view: int, lengths: Array) -> Array:
    """Return where the crops of a view lie, from 0, the start of a track, to 1, its end."""
    shown = batch.views[view]
    starts = batch.spans[shown.span_index].starts + shown.starts
    return np.asarray(starts / (lengths[batch.tracks] - shown.samples))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("window", [None, 1])
def test_ranks_share_an_epoch_and_leave_out_less_than_a_batch(
    tracks: Tracks, world_size: int, window: int | None
) -> None:
    plans = [
        Plan(tracks, IN_DECIBELS, batch_size=4, rank=rank, world_size=world_size, window=window)
        for rank in range(world_size)
    ]
    assert {plan.batches for plan in plans} == {23 // (4 * world_size)}
    met: set[int] = set()
    for epoch in range(12):
        taken = [plan.batch((epoch, number)).tracks for plan in plans for number in range(plan.batches)]
        epoch_of_all = np.concatenate(taken) if taken else np.zeros(0)
        assert len(epoch_of_all) == len(set(epoch_of_all.tolist()))
        assert 23 - len(epoch_of_all) < 4 * world_size
        met |= set(epoch_of_all.tolist())
    assert met == set(range(23)) or 4 * world_size > 23


@pytest.mark.parametrize(("world_size", "batch_size"), list(product([1, 2, 3, 5, 22], [1, 4, 100])))
def test_an_evaluation_has_every_track_once_and_in_order(
    tracks: Tracks, world_size: int, batch_size: int
) -> None:
    met: list[int] = []
    for rank in range(world_size):
        plan = TrackPlan(
            tracks, IN_DECIBELS, crops=2, batch_size=batch_size, rank=rank, world_size=world_size
        )
        batches = [plan.batch((0, number)) for number in range(plan.batches)]
        assert all(len(batch.tracks) == batch_size for batch in batches[:-1])
        met += [track for batch in batches for track in batch.tracks.tolist()]
    assert met == list(range(23))


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_the_global_batch_is_the_same_however_it_is_shared(tracks: Tracks, recipe: str) -> None:
    many = repeated(tracks, 300, 2 * RATE)

    def tables(world_size: int) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {}
        for rank in range(world_size):
            size = 128 // world_size
            plan = Plan(
                many, IN_DECIBELS, recipe=parse_recipe(recipe), views=2, independent=True,
                batch_size=size, rank=rank, world_size=world_size, window=2,
            )  # fmt: skip
            batch = plan.batch((1, 1))
            parts.setdefault("tracks", []).append(batch.tracks)
            for name, change in batch.views[1].drawn.items():
                for field, value in vars(change).items():
                    if isinstance(value, np.ndarray):
                        value = value + rank * size if field == "partner" else value
                        parts.setdefault(f"{name}.{field}", []).append(value)
            parts.setdefault("starts", []).append(batch.views[1].starts + batch.spans[1].starts)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    whole = tables(1)
    assert len(whole) > 5
    for world_size in (2, 4):
        shared = tables(world_size)
        assert shared.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_array_equal(shared[name], values, err_msg=name)


def test_views_of_the_same_crop_have_one_position_anywhere_in_the_track(tracks: Tracks) -> None:
    long = repeated(tracks, 2000, 11 * RATE)
    batch = Plan(long, IN_DECIBELS, views=2, batch_size=2000).batch((0, 0))
    first, second = (positions(batch, view, long.samples) for view in range(2))
    assert len(batch.spans) == 1
    np.testing.assert_array_equal(first, second)
    assert_distributed(first, uniform(0, 1))


def test_independent_crops_lie_anywhere_without_regard_to_each_other(tracks: Tracks) -> None:
    long = repeated(tracks, 2000, 11 * RATE)
    batch = Plan(long, IN_DECIBELS, views=2, independent=True, batch_size=2000).batch((0, 0))
    first, second = (positions(batch, view, long.samples) for view in range(2))
    assert_distributed(first, uniform(0, 1))
    assert_distributed(second, uniform(0, 1))
    # The distance of two points drawn from [0, 1] is below d with a probability of 1 - (1 - d)^2.
    assert_distributed(abs(first - second), lambda d: 1 - (1 - d) ** 2)


def test_independent_crops_start_no_further_apart_than_asked_for(tracks: Tracks) -> None:
    lengths = np.random.default_rng(0).integers(RATE // 2, 11 * RATE, size=2000)
    long = repeated(tracks, 2000, lengths)
    plan = Plan(long, IN_DECIBELS, views=2, independent=True, max_distance=2.5, batch_size=2000)
    batch = plan.batch((0, 0))
    starts = [batch.spans[view].starts + batch.views[view].starts for view in range(2)]
    seconds = abs(starts[0] - starts[1]) / RATE
    assert 2.4 < seconds.max() <= 2.5 + 1 / RATE
    # Away from the ends of a track, all distances are as likely.
    spare = lengths[batch.tracks] / RATE - 1
    inner = (starts[0] / RATE > 2.5) & (starts[0] / RATE < spare - 2.5)
    assert_distributed(seconds[inner], uniform(0, 2.5))


def test_a_stretch_moves_no_start_beyond_the_distance_asked_for(tracks: Tracks) -> None:
    lengths = np.random.default_rng(0).integers(2 * RATE, 11 * RATE, size=2000)
    plan = Plan(
        repeated(tracks, 2000, lengths), IN_DECIBELS, recipe=parse_recipe("stretch(p=1),wavemix"), views=2,
        independent=True, max_distance=0.1, batch_size=2000,
    )  # fmt: skip
    batch = plan.batch((0, 0))
    starts = [batch.spans[view].starts + batch.views[view].starts for view in range(2)]
    ends = lengths[batch.tracks] - batch.views[1].samples
    # A second crop that is longer may have to begin earlier, so as to end with its track.
    assert (abs(starts[0] - starts[1]) <= np.maximum(0.1 * RATE, starts[0] - ends) + 1).all()


@pytest.mark.parametrize("short_tracks", ["repeat", "pad"])
@pytest.mark.parametrize(
    "recipe", ["none", "audio", "pitch(p=1),wavemix(p=1),stretch(p=1)", "stretch,wavemix,wavemix"]
)
@pytest.mark.parametrize("independent", [False, True])
def test_spans_lie_within_tracks_and_hold_all_that_is_taken_of_them(
    tracks: Tracks, short_tracks: str, recipe: str, independent: bool
) -> None:
    lengths = np.random.default_rng(1).integers(RATE // 4, 3 * RATE, size=200)
    frontend = dataclasses.replace(IN_DECIBELS, short_tracks=short_tracks)
    plan = Plan(
        repeated(tracks, 200, lengths), frontend, recipe=parse_recipe(recipe), views=2,
        independent=independent, batch_size=96,
    )  # fmt: skip
    for number in range(plan.batches):
        batch = plan.batch((0, number))
        own = lengths[batch.tracks]
        long = np.maximum(own, RATE) if short_tracks == "pad" else own * -(-RATE // own)
        for spans in batch.spans:
            assert (spans.starts >= 0).all()
            assert (spans.starts + spans.samples <= long).all()
            assert (spans.samples <= plan.max_samples).all()
        for view in batch.views:
            spans = batch.spans[view.span_index]
            takes = [(np.arange(96), view.starts)]
            takes += [(change.partner, change.starts) for change in view.wave if isinstance(change, MixWaves)]
            for rows, starts in takes:
                assert (starts >= 0).all()
                assert (starts + view.samples <= spans.samples[rows]).all()
            rate = np.ones(96) if view.stretch is None else view.stretch * np.asarray(view.grid_pitch) / 128
            np.testing.assert_allclose(view.samples, RATE * rate, atol=0.51)


def test_a_track_too_short_for_the_tempo_is_played_as_fast_as_it_allows(tracks: Tracks) -> None:
    short = repeated(tracks, 40, 27_000)
    plan = Plan(short, IN_DECIBELS, recipe=parse_recipe("stretch(p=1,min_rate=1.5)"), batch_size=40)
    (view,) = plan.batch((0, 0)).views
    np.testing.assert_allclose(np.asarray(view.stretch), 27_000 / RATE)
    assert (view.samples == 27_000).all()


def test_evaluation_crops_are_evenly_spaced_from_the_first_to_the_last_second(tracks: Tracks) -> None:
    batch = TrackPlan(repeated(tracks, 4, 5 * RATE), IN_DECIBELS, crops=5, batch_size=4).batch((0, 0))
    assert batch.spans[0].starts.tolist() == 4 * [0, RATE, 2 * RATE, 3 * RATE, 4 * RATE]
    middle = TrackPlan(repeated(tracks, 1, 5 * RATE), IN_DECIBELS, crops=1, batch_size=1).batch((0, 0))
    assert middle.spans[0].starts.tolist() == [2 * RATE]


@pytest.mark.parametrize("minutes", [1, 10])
def test_crops_cover_a_whole_song_up_to_a_limit(tracks: Tracks, minutes: int) -> None:
    song = repeated(tracks, 23, minutes * 60 * RATE)
    of_paper, tiny = (Frontend(mel=MelConfig(seconds=s), mean=0, std=1) for s in (5.0, 0.1))
    assert covering_crops(song, of_paper, None) == minutes * 60 / 5
    assert covering_crops(song, tiny, None) == MAX_CROPS
    assert covering_crops(song, tiny, 7) == 7


def test_a_batch_is_a_function_of_its_place_alone(tracks: Tracks) -> None:
    def plan(**settings: Any) -> Plan:
        return Plan(tracks, IN_DECIBELS, recipe=parse_recipe("both"), views=2, batch_size=4, **settings)

    def text(batch: Batch) -> str:
        return repr(batch)

    one = plan()
    forwards = [text(one.batch((1, number))) for number in range(5)]
    assert [text(one.batch((1, number))) for number in (4, 3, 2, 1, 0)] == forwards[::-1]
    assert text(plan(seed=1).batch((1, 0))) != forwards[0]
    assert text(one.batch((2, 0))) != forwards[0]


class Soft_Mask(Mask):  # noqa: N801 (a user may name it so)
    pass


def test_a_step_that_occurs_twice_is_named_by_a_number(tracks: Tracks) -> None:
    recipe = (*parse_recipe("mask,gain,mask(p=1),gain"), Soft_Mask(), Soft_Mask())
    plan = Plan(tracks, IN_DECIBELS, recipe=recipe, batch_size=4)
    names = ["gain", "gain_2", "mask", "mask_2", "soft_mask", "soft_mask_2"]
    assert list(plan.batch((0, 0)).views[0].drawn) == names
