"""How processes that were started again agree on a name: a fresh one, whatever the dead left in the store."""

import time
import uuid
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from siamusic_fast.errors import SiamusicError

_LOOK_EVERY = 0.02
"""Seconds."""
DEADLINE = timedelta(minutes=10)
"""As long as NCCL waits for a process."""


def meet(store: Store, rank: int, world_size: int, deadline: timedelta = DEADLINE) -> str:
    """Return a name that all processes of this start get and none of an earlier one did.

    Torch's launcher keeps one store for all its starts, with the addresses of the dead in it, and its count
    of restarts is each node's own: neither tells one start from another on several nodes. Here the first
    process answers what the others ask anew at each start, until each of them has thanked for this name; what
    an earlier start asked or was answered matches nothing. Raises SiamusicError if one does not come before
    the `deadline`.
    """
    until = time.monotonic() + deadline.total_seconds()
    if rank == 0:
        name, missing = uuid.uuid4().hex, set(range(1, world_size))
        while missing:
            for other in missing:
                if question := _read(store, f"question/{other}"):
                    store.set(f"answer/{other}", f"{question} {name}")
            missing = {other for other in missing if _read(store, f"thanks/{other}") != name}
            _wait(until, f"rank {', '.join(map(str, sorted(missing)))}")
        return name
    question, answer = uuid.uuid4().hex, ""
    store.set(f"question/{rank}", question)
    while not answer.startswith(question):
        _wait(until, "rank 0")
        answer = _read(store, f"answer/{rank}")
    name = answer.removeprefix(f"{question} ")
    store.set(f"thanks/{rank}", name)
    return name


def _read(store: Store, key: str) -> str:
    """Return the value of `key`; empty if there is none."""
    return store.get(key).decode() if store.check([key]) else ""


def _wait(until: float, whom: str) -> None:
    if time.monotonic() > until:
        raise SiamusicError(f"{whom} did not come to join the others: see whether all nodes were started.")
    time.sleep(_LOOK_EVERY)
