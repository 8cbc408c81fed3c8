"""Requests to stop, by Ctrl-C, SIGTERM (SLURM's warning) or SIGHUP: a run notes them, saves, and stops."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEATED_WITHIN = 1.0
"""Seconds. A Ctrl-C reaches each process twice, from the terminal and from the launcher."""


class Stopped(KeyboardInterrupt):
    """A person or the system asked a run to stop, and it did."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """Exit code of a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class StopSignals:
    """While it is open, the first request to stop is noted in `received`; a later Ctrl-C raises `Stopped`.

    Other signals may be repeated by the system, and change nothing: only a person who repeats a Ctrl-C wants
    to stop without saving. A SIGHUP that is ignored, as under nohup, stays ignored. Only the main thread can
    handle signals: in other threads this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal, 0 for none."""
        self._received_at = 0.0
        self._stops_at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal) for number in STOPPING if _is_handled(number)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` at the first signal already: nothing that is done in this context needs saving."""
        if self.received:
            raise Stopped(self.received)
        self._stops_at_once = True
        try:
            yield
        except Exception:
            if self.received:  # Python makes another error of one that is raised while it creates a class
                raise Stopped(self.received) from None
            raise
        finally:
            self._stops_at_once = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        insists = self.received and number == signal.SIGINT and now - self._received_at > _REPEATED_WITHIN
        if not self.received:
            self.received, self._received_at = number, now
        if self._stops_at_once or insists:
            raise Stopped(number)


def _is_handled(number: signal.Signals) -> bool:
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
