from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from siamusic_fast.errors import SiamusicError
from siamusic_fast.processes.rendezvous import meet


def meeting(store: HashStore, *ranks: int, world_size: int = 3) -> list[str]:
    """Let processes of these ranks meet, in the order in which they come."""
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: meet(store, rank, world_size, timedelta(seconds=20)), ranks))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_each_start_finds_a_name_of_its_own_in_the_same_store(order: tuple[int, ...]) -> None:
    store = HashStore()
    names = [meeting(store, *order) for _ in range(3)]
    assert all(len(set(of_one_start)) == 1 for of_one_start in names)
    assert len({of_one_start[0] for of_one_start in names}) == 3


def test_what_the_dead_asked_and_were_told_misleads_nobody() -> None:
    store = HashStore()
    meeting(store, 0, 1, 2)
    with pytest.raises(SiamusicError, match="rank 0 did not come"):
        meet(store, 1, 3, timedelta(seconds=0.2))  # killed while it asked
    with pytest.raises(SiamusicError, match="rank 1, 2 did not come"):
        meet(store, 0, 3, timedelta(seconds=0.2))  # answered that question
    assert len(set(meeting(store, 0, 1, 2))) == 1


def test_a_process_that_is_alone_waits_for_nobody() -> None:
    assert meet(HashStore(), 0, 1, timedelta(seconds=0))
