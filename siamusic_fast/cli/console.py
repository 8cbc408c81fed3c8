"""The terminal: one console for progress and errors on standard error, one for results on standard output.

What a terminal shows is wrapped between words, so that 80 columns suffice; in a pipe a line stays one line.
"""

import io
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.store import local_name
from siamusic_fast.progress import SILENT, Progress, Task

console = Console(stderr=True, highlight=False)
"""Progress, notes and errors."""

output = Console(highlight=False, soft_wrap=True)
"""Results: what a person reads last and a machine may read."""

Figures = Callable[[Mapping[str, float]], list[list[str]]]
"""Turns the values that a task gives into words, in rows of at most 80 columns. A new row is news."""

_LINE_EVERY = 30.0
"""Seconds between two lines of figures, unless there is news."""
_NEWS = ("knn", "knn_roc_auc")
"""Figures whose new value is news."""


def escape_what_cannot_be_printed() -> None:
    """Let characters that standard output has no bytes for be escaped, as those on standard error are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def show_error(message: str) -> None:
    """Print one red line."""
    text = _wrapped(console, " ".join(f"error: {message}".split())).removeprefix("error:").replace("[", r"\[")
    console.print(f"[bold red]error:[/][red]{text}[/]", soft_wrap=True)


def note(message: str, command: str = "") -> None:
    """Print one line beside the progress; in a terminal `command` is the next line."""
    lines = [text for text in (message, command) if text]
    lines = [_wrapped(console, text) for text in lines] if console.is_terminal else [" ".join(lines)]
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what is to be said of them as two columns."""
    facts = list(facts)
    width = max([8, *(len(name) for name, _ in facts)]) + 2
    for name, text in facts:
        output.print(f"{name:{width}}{_wrapped(output, text, width)}", markup=False)


def note_reject(reject: Reject) -> None:
    """Say in one line that a file cannot be used."""
    note(f"left out: {local_name(reject.path)}: {reject.reason}: {reject.detail}")


def link(words: str, path: str) -> Text:
    """Return words that a terminal links to the file `path`, if it is there."""
    target = Path(local_name(path))
    style = f"link {target.resolve().as_uri()}" if path and target.is_file() else ""
    return Text(local_name(words), style=style)


def table_of(first: str, *headings: str) -> Table:
    """Return a table without lines: a column of names, and columns of figures on their right."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def command_line(*words: object) -> str:
    """Return a command to paste, with all that is not a plain word in quotes."""
    return shlex.join(map(str, words))


def count(number: int, unit: str) -> str:
    """Return a number with its unit, in the plural but for 1."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as 0:01:40."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def stopping(words: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """When the work inside is stopped, `note` the `words` and exit with the code that a shell expects."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if said := words():
            note(*said)
        sys.exit(getattr(stop, "exit_code", 130))


def _wrapped(where: Console, text: str, indent: int = 0) -> str:
    """Return `text` for a terminal with line breaks between words, and a command as one can paste it."""
    if not where.is_terminal:
        return text
    is_command = text.startswith("siamusic-fast ")
    if is_command:  # no break within quotes
        text = " ".join(shlex.quote(word).replace(" ", "\0") for word in shlex.split(text))
    width = where.width - indent - 2
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    joint = (" \\\n" if is_command else "\n") + " " * indent
    return joint.join(lines).replace("\0", " ")


def progress(
    quiet: bool, figures: Mapping[str, Figures] | None = None, screen: Console | None = None
) -> Progress:
    """Return what shows tasks, and the `figures` of those that have some, by the task; nothing if `quiet`."""
    return SILENT if quiet else _Display(figures or {}, screen)


class _Display:
    def __init__(self, figures: Mapping[str, Figures], screen: Console | None) -> None:
        self._figures = figures
        self._screen = screen
        """None: that of the process that shows a task, as a console cannot be given to another."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        figures = self._figures.get(description)
        screen = self._screen or console
        if not screen.is_terminal or total == 0:
            yield _Lines(description, total, unit, figures)
            return
        with _Bars(screen) as bars:
            try:
                yield _LiveTask(bars, description, total, unit, figures)
            except BaseException:
                bars.live.transient = True  # a stopped display leaves nothing behind
                raise
            finally:
                bars.rows = []


class _TimeLeft(TimeRemainingColumn):
    def render(self, task: RichTask) -> Text:
        found = super().render(task)
        return found if task.finished else found.append(" left")


class _Bars(RichProgress):
    """A progress bar with rows of words below it."""

    def __init__(self, screen: Console) -> None:
        self.rows: list[str] = []
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            _TimeLeft(compact=True, elapsed_when_finished=True),
            console=screen,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(row, style="dim") for row in self.rows)


class _LiveTask:
    def __init__(self, bars: _Bars, description: str, total: int, unit: str, figures: Figures | None) -> None:
        self._bars = bars
        self._id = bars.add_task(description, total=total, unit=unit)
        self._figures = figures
        self._values: dict[str, float] = {}

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self._values.update(values or {})
        if self._figures and values:
            self._bars.rows = ["  ".join(row) for row in self._figures(self._values)]
        elif note and not self._figures:
            self._bars.rows = [note]
        self._bars.update(self._id, advance=steps)


class _Lines:
    """Prints at most ten lines, or those of figures now and then."""

    def __init__(self, description: str, total: int, unit: str, figures: Figures | None) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._figures = figures
        self._done = 0
        self._values: dict[str, float] = {}
        self._rows = 0
        self._started = time.monotonic()
        self._printed = -_LINE_EVERY

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        tenths_before = 10 * self._done // max(self._total, 1)
        self._done += steps
        if self._figures:
            if values:
                self._show_figures(self._figures, values)
        elif 10 * self._done // max(self._total, 1) > tenths_before:
            words = f"{self._description}: {self._done}/{self._total} {self._unit}".rstrip()
            console.print(f"{words}  {note}".rstrip(), soft_wrap=True, markup=False)

    def _show_figures(self, figures: Figures, values: Mapping[str, float]) -> None:
        self._values.update(values)
        rows = figures(self._values)
        now, rows_before, self._rows = time.monotonic(), self._rows, len(rows)
        news = any(name in values for name in _NEWS) or self._rows > rows_before or self._done == self._total
        if news or now - self._printed >= _LINE_EVERY:
            self._printed = now
            left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
            words = ", ".join([*(word for row in rows for word in row), f"{duration(left)} left"])
            console.print(f"{self._description}: {words}", soft_wrap=True, markup=False)
