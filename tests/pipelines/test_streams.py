"""Which tracks come when: what both backends promise of seeds, restarts, ranks and threads."""

from collections import Counter
from typing import Any

import pytest

from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.both_backends import BACKENDS, labelled, labels_of, same, take, two_views, whole_tracks

WORLD_SIZES = [
    size if size in (1, 3, 8) else pytest.param(size, marks=pytest.mark.slow) for size in range(1, 9)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shards", "recipe", "crops"),
    [
        ("numbered", "image", "same"),
        ("numbered_flac", "audio", "independent"),
        pytest.param("numbered", "audio", "same", marks=pytest.mark.slow),
        pytest.param("numbered_flac", "image", "independent", marks=pytest.mark.slow),
    ],
)
def test_a_seed_gives_the_same_stream_also_after_a_restart_within_an_epoch(
    request: pytest.FixtureRequest, shards: str, recipe: str, backend: str, crops: str
) -> None:
    shard_set = request.getfixturevalue(shards)
    options: dict[str, Any] = {"recipe": recipe, "crops": crops}
    # 5 batches an epoch: the restart is in the middle of the second, what follows reaches into the third.
    with two_views(backend, shard_set, **options) as loader:
        expected = take(loader, 11)
    with two_views(backend, shard_set, **options) as stopped:
        assert same(take(stopped, 7), expected[:7])
        state = stopped.state_dict()
    with two_views(backend, shard_set, **options) as restarted:
        restarted.load_state_dict(state)
        assert same(take(restarted, 4), expected[7:])
    with two_views(backend, shard_set, seed=4, **options) as other:
        assert not same(take(other, 1), expected[:1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_labelled_crops_go_on_after_a_restart_as_if_never_stopped(numbered: ShardSet, backend: str) -> None:
    options: dict[str, Any] = {"labels": 0.5, "recipe": "mask,hflip"}
    expected = take(labelled(backend, numbered, **options), 11)
    stopped, restarted = (labelled(backend, numbered, **options) for _ in range(2))
    take(stopped, 7)
    restarted.load_state_dict(stopped.state_dict())
    assert same(take(restarted, 4), expected[7:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["audio", pytest.param("image", marks=pytest.mark.slow)])
def test_the_number_of_threads_changes_nothing(numbered: ShardSet, recipe: str, backend: str) -> None:
    expected = take(two_views(backend, numbered, recipe=recipe, threads=1), 3)
    for threads in (2, 3, 4):
        with two_views(backend, numbered, recipe=recipe, threads=threads) as loader:
            assert same(take(loader, 3), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_share_the_epoch_of_uneven_shards(uneven: ShardSet, backend: str, world_size: int) -> None:
    # With batches of one track nothing but the rest of the division is left over.
    splits = ("training", "validation", "test")
    assert [shard.tracks for shard in uneven.shards(splits)] == [10, 10, 2, 1]
    ranks = [
        labelled(backend, uneven, splits=splits, batch_size=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    share = 23 // world_size
    met: Counter[int] = Counter()
    for _ in range(2):
        epochs = [labels_of(rank) for rank in ranks]
        assert [len(epoch) for epoch in epochs] == [share] * world_size == [len(rank) for rank in ranks]
        together = Counter(label for epoch in epochs for label in epoch)
        assert max(together.values()) == 1
        assert len(together) == share * world_size >= 23 - (world_size - 1)
        met += together
    if 23 % world_size == 0:
        assert met == dict.fromkeys(range(23), 2)
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_track_has_its_turn_when_epochs_leave_some_out(uneven: ShardSet, backend: str) -> None:
    splits = ("training", "validation", "test")
    ranks = [
        labelled(backend, uneven, splits=splits, batch_size=4, rank=rank, world_size=3) for rank in range(3)
    ]
    met = Counter(label for _ in range(30) for rank in ranks for label in labels_of(rank))
    # 12 of 23 each time: a track comes 15.7 times in 30, and deviates by 2.7.
    assert set(met) == set(range(23))
    assert 15.7 - 4 * 2.8 < min(met.values()) <= max(met.values()) < 15.7 + 4 * 2.8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_evaluation_meets_every_track_of_uneven_shards_once(
    uneven: ShardSet, backend: str, world_size: int
) -> None:
    splits = ("training", "validation", "test")
    found = []
    for rank in range(world_size):
        with whole_tracks(
            backend, uneven, splits=splits, rank=rank, world_size=world_size, crops=1, batch_size=2
        ) as loader:
            found += labels_of(loader)
    assert found == [int(track.key) for track in read_tracks(uneven.folder)]
