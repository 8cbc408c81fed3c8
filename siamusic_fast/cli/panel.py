"""How pre-training looks: one live panel on a terminal, plain lines in a pipe or a log file."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siamusic_fast.cli.console import console, progress
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.training.pretrain import HEALTHY_COLLAPSE, NEAR_COLLAPSE, TASK

_LINE_EVERY = 30.0
"""Seconds between two lines, unless there is news of the kNN accuracy or of a collapse."""
_COLLAPSING = "collapsing: all inputs come out alike; a lower learning rate or larger batches may help"


def training_progress(quiet: bool, epochs: int) -> Progress:
    """Return what shows a run of `epochs`; nothing if `quiet`."""
    if quiet:
        return SILENT
    return TrainingPanel(epochs) if console.is_terminal else TrainingLines(epochs)


class Figures:
    """The task of a run: counts its steps and keeps its last figures."""

    def __init__(self, epochs: int, total: int) -> None:
        self._epochs = epochs
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._values: dict[str, float] = {}

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self._done += steps
        self._values.update(values or {})

    @property
    def collapsing(self) -> bool:
        return self._values.get("collapse", HEALTHY_COLLAPSE) < NEAR_COLLAPSE

    def texts(self) -> dict[str, str]:
        """Return each figure that is known, by its name, as text."""
        seconds = time.monotonic() - self._started
        left = seconds / self._done * (self._total - self._done) if self._done else None
        values = self._values
        formats = {
            "epoch": f"{{:.0f}}/{self._epochs}",
            "loss": "{:.4f}",
            "collapse": f"{{:.4f}} (healthy {HEALTHY_COLLAPSE:.4f})",
            "lr": "{:.3g}",
            "pairs_per_second": "{:,.1f}",
            "waiting": "{:.0%}",
            "knn": "{:.1%}",
        }
        texts = {name: form.format(values[name]) for name, form in formats.items() if name in values}
        texts["step"] = f"{values['step']:,}/{values['steps']:,}" if "step" in values else "-"
        texts["left"] = "-" if left is None else str(timedelta(seconds=round(left)))
        if "peak_memory" in values:
            texts["memory"] = f"{values['peak_memory'] / 2**30:.2f} GiB"
        return texts

    def panel(self) -> RenderableType:
        """Return everything as a panel of two rows, and a warning if the outputs collapse."""
        texts = self.texts()
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=self._total, completed=self._done, width=28),
            f"epoch {texts.get('epoch', '-')}",
            f"step {texts['step']}",
            f"{texts['left']} left",
        )
        table = Table(box=None, pad_edge=False, header_style="dim")
        columns = {
            "loss": "loss",
            "collapse measure": "collapse",
            "lr": "lr",
            "pairs/s": "pairs_per_second",
            "waiting for data": "waiting",
            "peak memory": "memory",
            "kNN": "knn",
        }
        for heading in columns:
            table.add_column(heading, justify="right")
        table.add_row(*(texts.get(name, "-") for name in columns.values()))
        warning = [Text(_COLLAPSING, style="bold red")] if self.collapsing else []
        return Panel(Group(bar, table, *warning), title=TASK, title_align="left", expand=False)

    def line(self) -> str:
        """Return everything as one line."""
        texts = self.texts()
        patterns = {
            "epoch": "epoch {}",
            "step": "step {}",
            "loss": "loss {}",
            "collapse": "collapse {}",
            "lr": "lr {}",
            "pairs_per_second": "{} pairs/s",
            "waiting": "{} waiting for data",
            "memory": "peak {}",
            "left": "{} left",
            "knn": "kNN {}",
        }
        known = [pattern.format(texts[name]) for name, pattern in patterns.items() if name in texts]
        return f"{TASK}: " + ", ".join(known + ([_COLLAPSING] if self.collapsing else []))


class _Training(ABC):
    """Shows a run in its own way, and whatever else there is to do as other commands do."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        shown = (
            self._run(total) if description == TASK else progress(quiet=False).task(description, total, unit)
        )
        with shown as task:
            yield task

    @abstractmethod
    def _run(self, total: int) -> AbstractContextManager[Task]:
        """Show a run of `total` steps."""


class TrainingPanel(_Training):
    """Shows a run as a live panel, and whatever else there is to do as a bar."""

    def __init__(self, epochs: int, screen: Console | None = None) -> None:
        super().__init__(epochs)
        self._screen = screen

    @contextmanager
    def _run(self, total: int) -> Iterator[Task]:
        figures = Figures(self._epochs, total)
        with Live(console=self._screen or console, get_renderable=figures.panel, refresh_per_second=4):
            yield figures


class TrainingLines(_Training):
    """Prints a line of a run's figures now and then, and lines on whatever else there is to do."""

    def _run(self, total: int) -> AbstractContextManager[Task]:
        return nullcontext(_Lines(self._epochs, total))


class _Lines(Figures):
    def __init__(self, epochs: int, total: int) -> None:
        super().__init__(epochs, total)
        self._printed = -_LINE_EVERY

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        collapsed_before = self.collapsing
        super().advance(steps, note, values)
        if values is None:
            return
        news = "knn" in values or self.collapsing > collapsed_before or self._done == self._total
        if news or time.monotonic() - self._printed >= _LINE_EVERY:
            self._printed = time.monotonic()
            console.print(self.line(), soft_wrap=True, markup=False)
