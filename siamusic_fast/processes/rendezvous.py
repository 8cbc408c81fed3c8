"""The store of processes that torchrun started: each of its starts needs keys of its own."""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from siamusic_fast.errors import SiamusicError

_POLL_SECONDS = 0.02


def torchrun_store(rank: int, world_size: int, timeout: timedelta) -> tuple[Store, str]:
    """Return the store of this start of torchrun's processes, and an id that all its starts share."""
    store, *_ = next(rendezvous("env://", timeout=timeout))
    # TORCHELASTIC_RUN_ID is no such id: it is "none" unless the user chose one.
    job_id = store.compare_set("siamusic-fast/job", "", uuid.uuid4().hex).decode()
    return PrefixStore(start_name(store, rank, world_size, timeout), store), job_id


def start_name(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a new name that all processes of this start of torchrun get.

    torchrun keeps one store for all its starts, with the addresses of dead processes in it, and each node
    counts its own failures only: neither tells one start from another. All processes of a start are dead
    before the next start begins. So the first process deletes the old questions, and the others repeat theirs
    until it answers. Raises SiamusicError if a process does not come within `timeout`.
    """
    until = time.monotonic() + timeout.total_seconds()
    name = uuid.uuid4().hex
    if rank > 0:
        while not store.check([f"answer/{name}"]):
            store.set(f"question/{rank}", name)
            _wait(until, "rank 0")
        return store.get(f"answer/{name}").decode()
    others = range(1, world_size)
    for other in others:
        store.delete_key(f"question/{other}")
    while missing := [str(other) for other in others if not store.check([f"question/{other}"])]:
        _wait(until, f"rank {', '.join(missing)}")
    for other in others:
        store.set(f"answer/{store.get(f'question/{other}').decode()}", name)
    return name


def _wait(until: float, missing: str) -> None:
    if time.monotonic() > until:
        raise SiamusicError(f"{missing} did not join the others: check that all nodes were started.")
    time.sleep(_POLL_SECONDS)
