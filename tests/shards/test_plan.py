import random
from collections import Counter

import pytest

from siamusic_fast.audio.corpus import SPLITS, Track
from siamusic_fast.shards.plan import plan_shards


def make_tracks(count: int) -> list[Track]:
    rng = random.Random(0)
    return [
        Track(f"{n:06d}", f"{n}.mp3", rng.choice(SPLITS), rng.choice(("", "Folk", "Rock")))
        for n in range(count)
    ]


@pytest.mark.parametrize("tracks_per_shard", [1, 7, 64, 1000])
def test_every_track_is_in_exactly_one_shard_of_its_split_and_kind(tracks_per_shard: int) -> None:
    tracks = make_tracks(500)
    plans = plan_shards(tracks, tracks_per_shard=tracks_per_shard, seed=0)
    assert Counter(track for plan in plans for track in plan.tracks) == Counter(tracks)
    assert len({plan.stem for plan in plans}) == len(plans)
    for plan in plans:
        assert {track.split for track in plan.tracks} == {plan.split}
        assert {track.genre != "" for track in plan.tracks} == {plan.labelled}


def test_shards_of_a_group_are_full_and_even() -> None:
    tracks = [Track(f"{n:06d}", f"{n}.mp3", "training", "Folk") for n in range(10)]
    plans = plan_shards(tracks, tracks_per_shard=4, seed=0)
    assert sorted(len(plan.tracks) for plan in plans) == [3, 3, 4]
    assert [plan.stem for plan in plans] == ["training-000000", "training-000001", "training-000002"]


def test_the_plan_does_not_depend_on_the_order_of_the_tracks() -> None:
    tracks = make_tracks(200)
    shuffled = random.Random(1).sample(tracks, len(tracks))
    plan = plan_shards(tracks, tracks_per_shard=16, seed=3)
    assert plan == plan_shards(shuffled, tracks_per_shard=16, seed=3)
    assert plan != plan_shards(tracks, tracks_per_shard=16, seed=4)


def test_tracks_are_shuffled_over_all_shards_of_a_split() -> None:
    tracks = [Track(f"{n:06d}", f"{n}.mp3", "training", "Folk") for n in range(1000)]
    first, second = plan_shards(tracks, tracks_per_shard=500, seed=0)
    for plan in (first, second):
        mean = sum(int(track.key) for track in plan.tracks) / 500
        # Of 500 drawn from 0..999 without replacement, the mean deviates by 9.1 from 499.5.
        assert abs(mean - 499.5) < 4 * 9.1
