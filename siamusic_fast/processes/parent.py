"""Ending a process with the one that started it, from its first moment on; imports no torch."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""
_KEY = "siamusic-fast"


@contextmanager
def children_end_with_this_process() -> Iterator[None]:
    """Have processes that are spawned in the context killed when this one ends, even while they start.

    A spawned process gets what its parent keeps in `_config` before the function that it is to call. To read
    that function, it imports the module, and perhaps torch, which takes seconds.

    A daemon, such as a worker of Dask, may have children here: Python allows it none because they would
    outlive it.
    """
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    before = dict(config)
    config.update({_KEY: _EndsWithParent(), "daemon": False})
    try:
        yield
    finally:
        config.clear()
        config.update(before)


class _EndsWithParent:
    """Calls `_end_with` in the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _end_with, (os.getpid(),)


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
