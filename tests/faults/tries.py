"""Counts how often a promise was tried and kept. A test goes on after a failed try, and fails at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

PROPERTY = "tries"
"""Name of the property of a test's report with what was tried and what survived."""
SHARE = pytest.StashKey[float]()
"""Share of the long form that `run` asks for; without it, tests run in their short form."""
_MOST_SHOWN = 10


@dataclass
class Tries:
    """So many tries of one test: `for number in tries: with tries.attempt(...)`."""

    count: int
    counts: list[int] = field(default_factory=lambda: [0, 0])
    """Tried and survived."""
    failures: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[int]:
        yield from range(self.count)
        self.finish()

    @contextmanager
    def attempt(self, words: object) -> Iterator[None]:
        """Count a try, described by `words`; it fails if the context raises."""
        self.counts[0] += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(f"{words}: {type(error).__name__}: {error}")
        else:
            self.counts[1] += 1

    def finish(self) -> None:
        """Raise AssertionError with the tries that failed, if any."""
        shown = "\n".join(self.failures[:_MOST_SHOWN])
        assert not self.failures, f"{len(self.failures)} of {self.counts[0]} tries failed:\n{shown}"
