"""How long work reports its progress without knowing who is looking: a terminal, a log file or nobody."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running job with a known number of steps."""

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        """Move on by `steps`; `note` is a few words on the latest state, such as ``loss -0.81``.

        `values` are figures by name, if they are new, for a display that knows what to do with them.
        """


class Progress(Protocol):
    """Somewhere to show running jobs."""

    def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Task]:
        """Show a job of `total` steps, counted in `unit`, for as long as the context is open."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        pass


class _Silent:
    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        yield _SilentTask()


SILENT: Progress = _Silent()
"""Shows nothing: the default of every library function."""
