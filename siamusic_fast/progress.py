"""Reports of long work, which a terminal, a log file or nothing shows."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """A running task with a known number of steps."""

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        """Report that `steps` more are done; `note` is a few words on the state, such as ``loss -0.81``.

        `values` are new figures by name, for a display that shows figures.
        """


class Progress(Protocol):
    """A display of running tasks, such as a terminal's. Library functions report to it and never print."""

    def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Task]:
        """Show a task of `total` steps, counted in `unit`, for as long as the context is open."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        pass


class _Silent:
    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        yield _SilentTask()


SILENT: Progress = _Silent()
"""Shows nothing: the default of every library function."""
