from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from siamusic_fast.errors import SiamusicError
from siamusic_fast.processes.rendezvous import start_name


def start(store: HashStore, *ranks: int, world_size: int = 3) -> list[str]:
    """Return the names that processes of these ranks get, which come in this order."""
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: start_name(store, rank, world_size, timedelta(seconds=20)), ranks))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_each_start_finds_a_name_of_its_own_in_the_same_store(order: tuple[int, ...]) -> None:
    store = HashStore()
    names = [start(store, *order) for _ in range(3)]
    assert all(len(set(of_one_start)) == 1 for of_one_start in names)
    assert len({of_one_start[0] for of_one_start in names}) == 3


def test_what_the_dead_asked_and_were_told_misleads_nobody() -> None:
    store = HashStore()
    start(store, 0, 1, 2)
    with pytest.raises(SiamusicError, match="rank 0 did not join"):
        start_name(store, 1, 3, timedelta(seconds=0.2))  # killed while it asked
    with pytest.raises(SiamusicError, match="rank 1, 2 did not join"):
        start_name(store, 0, 3, timedelta(seconds=0.2))  # answered that question
    assert len(set(start(store, 0, 1, 2))) == 1


def test_a_process_that_is_alone_waits_for_nobody() -> None:
    assert start_name(HashStore(), 0, 1, timedelta(seconds=0))
