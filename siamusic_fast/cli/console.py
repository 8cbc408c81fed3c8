"""The terminal: one console for progress and errors on standard error, one for results on standard output."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from siamusic_fast.progress import SILENT, Progress, Task

console = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""

output = Console(highlight=False, soft_wrap=True)
"""Results: what a person reads last and a machine may read."""


def show_error(message: str) -> None:
    """Print one red line."""
    console.print(f"[bold red]error:[/] [red]{_plain(message)}[/]", soft_wrap=True)


def note(message: str) -> None:
    """Print one line beside the progress, such as where a run is kept."""
    console.print(message, soft_wrap=True, markup=False)


def _plain(message: str) -> str:
    return " ".join(message.split()).replace("[", r"\[")


def progress(quiet: bool) -> Progress:
    """Return a live display, plain lines where standard error is no terminal, or nothing if `quiet`."""
    if quiet:
        return SILENT
    return _Live() if console.is_terminal else _Lines()


class _LiveTask:
    def __init__(self, bars: RichProgress, description: str, total: int, unit: str) -> None:
        self._bars = bars
        self._id = bars.add_task(description, total=total, unit=unit, note="")

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        if note:
            self._bars.update(self._id, advance=steps, note=note)
        else:
            self._bars.update(self._id, advance=steps)


class _Live:
    """A progress bar that disappears into its last state."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with RichProgress(*columns, console=console) as bars:
            yield _LiveTask(bars, description, total, unit)


class _LineTask:
    """At most ten lines over the whole job, for log files."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._done = 0

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        tenths_before = 10 * self._done // max(self._total, 1)
        self._done += steps
        if 10 * self._done // max(self._total, 1) > tenths_before:
            words = f"{self._description}: {self._done}/{self._total} {self._unit}".rstrip()
            console.print(f"{words}  {note}".rstrip(), soft_wrap=True, markup=False)


class _Lines:
    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        yield _LineTask(description, total, unit)
