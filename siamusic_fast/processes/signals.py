"""Ctrl-C, SIGTERM (SLURM's warning) and SIGHUP: noted at once, obeyed where a run can be saved."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEATED_WITHIN = 1.0
"""Seconds. A Ctrl-C reaches each process of a job twice, from the terminal and from the launcher."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, by a person or by the system, and did."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What a shell reports of a program that it ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class StopSignals:
    """While it is open, the first signal to stop is noted in `received`; a Ctrl-C after it raises `Stopped`.

    A system that stops a job may say so several times: only a person who repeats it wants no saving. A SIGHUP
    that is ignored, as under nohup, stays so.

    Python lets the main thread alone handle signals: elsewhere nothing is changed, and nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal, 0 for none."""
        self._when = 0.0
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note) for number in STOPPING if _heeded(number)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` at the first signal too: nothing that is done in this context needs saving."""
        if self.received:
            raise Stopped(self.received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        insists = self.received and number == signal.SIGINT and now - self._when > _REPEATED_WITHIN
        if self._at_once or insists:
            raise Stopped(number)
        if not self.received:
            self.received, self._when = number, now


def _heeded(number: signal.Signals) -> bool:
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
