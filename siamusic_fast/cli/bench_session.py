"""One call of a benchmark: the shards that it measures with, and how its result is shown and kept."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from siamusic_fast.bench import chart, stages
from siamusic_fast.bench.corpus import make_shards, tracks_for
from siamusic_fast.bench.doctor import Facts, advise
from siamusic_fast.bench.report import Measurement, Report, added_ms, number
from siamusic_fast.bench.timing import QUICK, Timing
from siamusic_fast.cli.console import console, note, output, progress, table_of
from siamusic_fast.config import PretrainConfig
from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.progress import Progress
from siamusic_fast.shards.manifest import find_shards

_HEADINGS = ("median", "spread", "unit", "adds ms", "CPU ms")


@dataclass(frozen=True, kw_only=True)
class Session:
    """A benchmark that has begun, with the values of the options that several benchmarks share.

    Raises DataError if `out` has a result of the benchmark and `force` is not given.
    """

    name: str
    data_dir: Path
    quiet: bool
    as_json: bool
    data: str | None = None
    loader_threads: int | None = None
    quick: bool = False
    out: Path | None = None
    force: bool = False
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.out is None:
            return
        for path in (self.out / f"{self.name}.json", self.out / f"{self.name}.png"):
            if path.exists() and not self.force:
                raise DataError(
                    f"{path} exists: keep the result elsewhere with --out, or replace it with --force."
                )
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def timing(self) -> Timing:
        """How long to measure."""
        return QUICK if self.quick else Timing()

    @property
    def progress(self) -> Progress:
        """What shows the progress of measuring."""
        return progress(self.quiet)

    @contextmanager
    def setup(self, batch_size: int, device: torch.device, augs: Sequence[str]) -> Iterator[stages.Setup]:
        """Give loaders over the shards that --data means, or over some that are made for the purpose."""
        for aug in augs:
            parse_recipe(aug)
        with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as folder:
            if self.data is None:
                shard_set = make_shards(Path(folder), tracks_for(batch_size), progress=self.progress)
            else:
                shard_set = find_shards(self.data, self.data_dir)
            yield stages.prepare(
                shard_set,
                batch_size=batch_size,
                device=device,
                loader_threads=self.loader_threads,
                progress=self.progress,
            )

    def show(self, report: Report) -> None:
        """Print `report`, then write it and its chart if they are to be kept."""
        report = dataclasses.replace(report, seconds=time.perf_counter() - self.started)
        if not (self.quiet or self.as_json):
            console.print(report.title, _measurements(report), sep="\n")
            for ratio in report.ratios:
                note(f"{ratio.name}: {ratio.median:.2f} ± {ratio.spread:.0%}")
            for line in report.notes:
                note(line)
        document = json.dumps(report.as_json())
        output.print_json(document, indent=None, ensure_ascii=True)
        if self.out is not None:
            path = self.out / f"{self.name}.json"
            with atomic_write(path) as file:
                file.write(document.encode() + b"\n")
            chart.draw(report, path.with_suffix(".png"))
            if not self.quiet:
                note(f"Kept: {path} and its chart, {self.name}.png")

    def show_advice(self, facts: Facts, aug: str, config: PretrainConfig) -> None:
        """Print what was measured of every stage, and the advice that follows from it."""
        advice = advise(facts)
        if self.as_json:
            about = {"backbone": config.backbone, "batch_size": config.batch_size, "advice": advice}
            output.print_json(json.dumps(dataclasses.asdict(facts) | about), indent=None, ensure_ascii=True)
            return
        if not self.quiet:
            output.print(f"{config.backbone}, batches of {config.batch_size}, {aug}", markup=False)
            table = table_of("what", "pairs/s")
            for stage, rate in facts.rates.items():
                table.add_row(stage, number(rate))
            output.print(table)
        output.print(advice, markup=False)


def _measurements(report: Report) -> Table:
    rows = {_title(one): _figures(one, report) for one in report.measurements}
    used = [column for column in range(len(_HEADINGS)) if any(row[column] for row in rows.values())]
    table = table_of("what", *(_HEADINGS[column] for column in used))
    for title, row in rows.items():
        table.add_row(title, *(row[column] for column in used))
    return table


def _title(one: Measurement) -> str:
    return f"{one.name} ({one.setting})" if one.setting else one.name


def _figures(one: Measurement, report: Report) -> tuple[str, ...]:
    return (
        number(one.median),
        f"± {one.spread:.0%}",
        one.unit,
        f"{added_ms(report.measurements, one):.2f}" if one.extends else "",
        "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}",
    )
