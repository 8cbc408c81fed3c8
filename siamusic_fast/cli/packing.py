"""The live table of `siamusic-fast shard` on a terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from siamusic_fast.progress import Task
from siamusic_fast.shards.pack import PackStatus


class PackingTable:
    """Shows what `pack` is doing: give it as `progress`, and its `watch` as `watch`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._description = ""
        self._total = 0
        self._done = 0
        self._unit = ""
        self._status: PackStatus | None = None

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        self._description, self._total, self._done, self._unit = description, total, 0, unit
        with Live(console=self._console, get_renderable=self._render, refresh_per_second=8) as live:
            self._live = live
            yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self._done += steps

    def watch(self, status: PackStatus) -> None:
        self._status = status

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        counts = f"{self._done:,}/{self._total:,} {self._unit}"
        bar.add_row(self._description, ProgressBar(total=self._total, completed=self._done, width=28), counts)
        return Group(bar, _figures(self._status)) if self._status else bar


def _figures(status: PackStatus) -> Table:
    left = status.seconds_left
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("tracks/s", "MB/s", "time left"):
        table.add_column(heading, justify="right")
    table.add_column("left out")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in status.rejected.items())
    table.add_row(
        f"{status.files_per_second:,.1f}",
        f"{status.megabytes_per_second:,.1f}",
        "-" if left is None else str(timedelta(seconds=round(left))),
        Text(reasons or "nothing"),
    )
    return table
