import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from siamusic_fast.audio.corpus import SPLITS, Track
from siamusic_fast.shards.pack_shard import cut
from siamusic_fast.shards.plan import ShardPlan, plan_shards

tracks = st.lists(
    st.builds(
        Track,
        id=st.text(min_size=1, max_size=6),
        path=st.text(min_size=1, max_size=6),
        split=st.sampled_from(SPLITS),
        genre=st.sampled_from(("", "Folk", "Rock")),
    ),
    unique_by=lambda track: track.key,
    max_size=60,
)
sizes = st.integers(1, 20)
seeds = st.integers(-(2**40), 2**40)

# No deadline: machines that run tests are busy. No database: nothing is left in the working folder.
settings.register_profile("plan", deadline=None, database=None, max_examples=60)
plan_settings = settings.get_profile("plan")


def groups(plans: tuple[ShardPlan, ...]) -> dict[tuple[str, bool], list[ShardPlan]]:
    found = defaultdict(list)
    for plan in plans:
        found[plan.split, plan.labelled].append(plan)
    return found


@plan_settings
@given(tracks, sizes, seeds)
def test_every_track_is_in_exactly_one_shard(tracks: list[Track], size: int, seed: int) -> None:
    plans = plan_shards(tracks, tracks_per_shard=size, seed=seed)
    assert Counter(track for plan in plans for track in plan.tracks) == Counter(tracks)
    assert len({plan.stem for plan in plans}) == len(plans)


@plan_settings
@given(tracks, sizes, seeds)
def test_shards_are_within_bounds_even_and_as_few_as_can_be(
    tracks: list[Track], size: int, seed: int
) -> None:
    for members in groups(plan_shards(tracks, tracks_per_shard=size, seed=seed)).values():
        counts = [len(plan.tracks) for plan in members]
        assert 1 <= min(counts) <= max(counts) <= min(size, min(counts) + 1)
        assert (len(counts) - 1) * size < sum(counts)


@plan_settings
@given(tracks, sizes, seeds)
def test_splits_are_disjoint_and_unlabelled_tracks_apart(tracks: list[Track], size: int, seed: int) -> None:
    for plan in plan_shards(tracks, tracks_per_shard=size, seed=seed):
        assert {track.split for track in plan.tracks} == {plan.split}
        assert {track.genre != "" for track in plan.tracks} == {plan.labelled}
        assert plan.stem.split("-")[0] == plan.split


@plan_settings
@given(tracks, sizes, seeds, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_the_input(
    tracks: list[Track], size: int, seed: int, rng: random.Random
) -> None:
    shuffled = rng.sample(tracks, len(tracks))
    assert plan_shards(tracks, tracks_per_shard=size, seed=seed) == plan_shards(
        shuffled, tracks_per_shard=size, seed=seed
    )


@plan_settings
@given(st.integers(1, 10_000), st.integers(0, 100), st.integers(0, 200))
def test_segments_tile_a_track_up_to_a_piece_that_is_too_short(samples: int, least: int, more: int) -> None:
    rate, most = 10, least + max(more, 1)
    if samples < least:
        return
    pieces = cut(samples, rate, least / rate, most / rate)
    places = [place for piece in pieces for place in piece]
    assert places == list(range(len(places)))
    assert samples - len(places) < max(least, 1)
    assert all(least <= len(piece) <= most for piece in pieces)
    assert all(len(piece) == most for piece in pieces[:-1])
    assert cut(samples, rate, least / rate, None) == [range(samples)]
