"""`siamusic-fast bench`: how fast it is here, beside what the machine allows."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.table import Table

from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.bench import loader as loader_bench
from siamusic_fast.bench import shard as shard_bench
from siamusic_fast.bench import train as train_bench
from siamusic_fast.bench.corpus import make_shards, tracks_for
from siamusic_fast.bench.doctor import Facts, advise, examine
from siamusic_fast.bench.report import number
from siamusic_fast.bench.stages import Setup, prepare
from siamusic_fast.bench.timing import QUICK, Timing
from siamusic_fast.cli import options
from siamusic_fast.cli.bench_results import Result
from siamusic_fast.cli.console import output, progress
from siamusic_fast.config import BACKBONES, PretrainConfig
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.launch import device_for
from siamusic_fast.processes.pool import cores
from siamusic_fast.shards.manifest import find_shards

_SMALL = ("resnet18", 16)
"""Backbone and batch size of which a CPU trains some steps in a second."""

Command = Callable[..., None]


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return what adds several options to a command, the first at the top of its help."""
    return lambda command: functools.reduce(lambda inner, add: add(inner), reversed(decorators), command)


_threads = click.option(
    "--loader-threads",
    type=click.IntRange(min=1),
    help="CPU threads that make batches.  [default: all cores]",
)
_on_shards = _together(
    click.option("--data", help="Shards: a folder, or a name.  [default: clips made for it]"),
    options.data_dir,
)
_device = click.option("--device", help="Device to measure: cpu or cuda.  [default: cuda if there is a GPU]")
_training = _together(
    options.aug,
    click.option(
        "--backbone",
        type=click.Choice(BACKBONES),
        metavar="NAME",
        help=f"Encoder to train.  [default: {PretrainConfig.backbone}; on a CPU {_SMALL[0]}]",
    ),
    click.option(
        "--batch-size",
        type=int,
        help=f"Pairs per batch.  [default: {PretrainConfig.batch_size}; on a CPU {_SMALL[1]}]",
    ),
)
_quick = click.option("--quick", is_flag=True, help="Measure for a minute or two, less exactly.")
_keeping = _together(
    click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder to keep the result in, as JSON and as a chart.",
    ),
    click.option("--force", is_flag=True, help="Replace an earlier result in the folder of --out."),
    options.quiet,
    options.as_json,
)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The values of the options that several benchmarks share."""

    data_dir: Path
    quiet: bool
    as_json: bool
    data: str | None = None
    loader_threads: int | None = None
    quick: bool = False
    out: Path | None = None
    force: bool = False

    @property
    def timing(self) -> Timing:
        """How long to measure."""
        return QUICK if self.quick else Timing()

    def begin(self, name: str) -> Result:
        """Return where the result of the benchmark `name` goes, checked."""
        return Result(name, self.out, force=self.force, quiet=self.quiet, as_json=self.as_json)

    @contextmanager
    def setup(self, batch_size: int, device: torch.device) -> Iterator[Setup]:
        """Give loaders over the shards that --data means, or over some that are made for the purpose."""
        with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as folder:
            if self.data is None:
                made = make_shards(Path(folder), tracks_for(batch_size), progress=progress(self.quiet))
            yield prepare(
                made if self.data is None else find_shards(self.data, self.data_dir),
                batch_size=batch_size,
                device=device,
                loader_threads=self.loader_threads,
                progress=progress(self.quiet),
            )


@click.group()
def bench() -> None:
    """Measure how fast it is, beside what this machine allows.

    The last line of each benchmark is the result as JSON, with every window; --out keeps it with a chart.

    \b
    siamusic-fast bench loader
    siamusic-fast bench loader --data fma_small --quick
    siamusic-fast bench doctor
    """


@bench.command()
@_on_shards
@click.option(
    "--aug",
    "augs",
    multiple=True,
    default=("image", "audio"),
    show_default=True,
    help="Augmentations to measure; may be given more than once.",
)
@click.option("--batch-size", type=int, default=64, show_default=True, help="Pairs per batch.")
@_device
@_threads
@_quick
@_keeping
def loader(augs: tuple[str, ...], batch_size: int, device: str | None, **shared: Any) -> None:
    """Measure pairs per second of the two-view loader.

    The stages of the DALI loader are measured one more at a time: planning, reading, handing over, features,
    and each --aug; in turns with them the torch engine and what the machine allows.

    \b
    siamusic-fast bench loader
    siamusic-fast bench loader --data fma_small --aug image --batch-size 256
    """
    for aug in augs:
        parse_recipe(aug)
    session = _Shared(**shared)
    result = session.begin("loader")
    with session.setup(batch_size, _device_of(device)) as setup:
        result.show(loader_bench.measure(setup, augs, session.timing, progress(session.quiet)))


@bench.command()
@_on_shards
@_training
@_device
@_quick
@_keeping
def train(aug: str, backbone: str | None, batch_size: int | None, device: str | None, **shared: Any) -> None:
    """Measure pairs per second of pre-training, and whether it waits for data.

    In turns: training on one batch that stays on the device, which is the most that any loader could feed,
    and on the batches of the DALI and the torch loader, each with the share of time that training waits.

    \b
    siamusic-fast bench train --backbone resnet18 --batch-size 16
    """
    parse_recipe(aug)
    where = _device_of(device)
    backbone, batch_size = _to_train(backbone, batch_size, where)
    session = _Shared(**shared)
    result = session.begin("train")
    with session.setup(batch_size, where) as setup:
        result.show(train_bench.measure(setup, aug, backbone, session.timing, progress(session.quiet)))


@bench.command()
@click.argument("source", required=False)
@options.data_dir
@click.option("--tracks", type=int, help="MP3s to make if there is no SOURCE.  [default: 400; quick: 100]")
@click.option("--procs", type=click.IntRange(min=1), help="Processes that pack.  [default: one per core]")
@_quick
@_keeping
def shard(source: str | None, tracks: int | None, procs: int | None, **shared: Any) -> None:
    """Measure packing and verifying.

    SOURCE is what `shard` takes; without it, MP3s of 30 s are made in a temporary folder. Packing is measured
    in turns with its limit: the CPU time of decoding and resampling.

    \b
    siamusic-fast bench shard --quick
    siamusic-fast bench shard fma_small --procs 8
    """
    session = _Shared(**shared)
    result = session.begin("shard")
    report = shard_bench.measure(
        open_corpus(source, data_dir=session.data_dir) if source else None,
        tracks=(100 if session.quick else 400) if tracks is None else tracks,
        procs=procs,
        progress=progress(session.quiet),
    )
    result.show(report)


@bench.command()
@_on_shards
@_training
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    help="GPUs that share the cores; one is measured, with its share. 0 is the CPU.  [default: one, if any]",
)
@_threads
@options.quiet
@options.as_json
def doctor(aug: str, backbone: str | None, batch_size: int | None, gpus: int | None, **shared: Any) -> None:
    """Say whether training waits for data, why, and the one change that would help most.

    It takes about a minute. A rate that the advice promises is what the other stages would still allow.

    \b
    siamusic-fast bench doctor
    siamusic-fast bench doctor --data fma_medium --aug audio --backbone resnet18
    """
    parse_recipe(aug)
    device = device_for(None if gpus is None else min(gpus, 1))
    backbone, batch_size = _to_train(backbone, batch_size, device)
    share = max(1, cores() // max(1, gpus or 1))
    shared["loader_threads"] = shared["loader_threads"] or share
    session = _Shared(**shared)
    with session.setup(batch_size, device) as setup:
        facts = examine(setup, aug, backbone, share, QUICK, progress(session.quiet))
    if session.as_json:
        about = {"backbone": backbone, "batch_size": batch_size, "advice": advise(facts)}
        output.print_json(json.dumps(dataclasses.asdict(facts) | about), indent=None)
        return
    if not session.quiet:
        output.print(_facts_table(facts, f"{backbone}, batches of {batch_size}, {aug}"))
    output.print(advise(facts), markup=False)


def _device_of(name: str | None) -> torch.device:
    return device_for(None) if name is None else torch.device(name)


def _to_train(backbone: str | None, batch_size: int | None, device: torch.device) -> tuple[str, int]:
    """Return the backbone and the batch size to train with on `device`; `None` is its default."""
    usual = _SMALL if device.type == "cpu" else (PretrainConfig.backbone, PretrainConfig.batch_size)
    return backbone or usual[0], usual[1] if batch_size is None else batch_size


def _facts_table(facts: Facts, title: str) -> Table:
    table = Table("what", title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("pairs/s", justify="right")
    for name, rate in facts.rates.items():
        table.add_row(name, number(rate))
    return table
