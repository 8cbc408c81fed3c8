"""`siamusic-fast bench`: how fast it is on this machine."""

from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.config import PretrainConfig

_SMALL: dict[str, Any] = {"backbone": "resnet18", "batch_size": 16}
"""Settings with which a CPU trains some steps in a second."""

_on_shards = options.together(options.made_data, options.data_dir, options.cache, options.loader_threads)
_training = options.together(
    options.aug,
    options.settings(
        PretrainConfig,
        *_SMALL,
        defaults={
            name: f"{getattr(PretrainConfig, name)}; on a CPU {small}" for name, small in _SMALL.items()
        },
    ),
)
_quick = click.option("--quick", is_flag=True, help="Measure for a minute or two, less exactly.")
_kept = options.together(options.out("nowhere"), options.force, options.quiet, options.as_json)


@click.group()
def bench() -> None:
    """Measure how fast it is.

    The last line of each benchmark is the result as JSON, with every window; --out FOLDER keeps it with a
    chart.

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
@options.device
@_quick
@_kept
def loader(augs: tuple[str, ...], batch_size: int, device: Any, **shared: Any) -> None:
    """Measure pairs per second of the two-view loader.

    The stages of the DALI loader are measured one more at a time: planning, reading, handing over, features,
    and each --aug; in turns with them the torch engine, and then what the disk allows. If --data is a URL,
    fetching the shards into an empty cache is measured too.

    \b
    siamusic-fast bench loader
    siamusic-fast bench loader --data fma_small --aug image --batch-size 256
    """
    from siamusic_fast.bench import loader as benchmark
    from siamusic_fast.cli.bench_session import Session

    session = Session(name="loader", **shared)
    with session.setup(batch_size, device, augs) as setup:
        session.show(benchmark.measure(setup, augs, session.timing, session.progress))


@bench.command()
@_on_shards
@_training
@options.device
@_quick
@_kept
def train(aug: str, backbone: str | None, batch_size: int | None, device: Any, **shared: Any) -> None:
    """Measure pairs per second of pre-training, and whether it waits for data.

    In turns: training on one batch that stays on the device, which is the most that any loader could feed,
    and on the batches of the DALI and the torch loader, each with the share of time that training waits.

    \b
    siamusic-fast bench train --backbone resnet18 --batch-size 16
    """
    from siamusic_fast.bench import train as benchmark
    from siamusic_fast.cli.bench_session import Session

    config = _to_train(device.type, backbone, batch_size)
    session = Session(name="train", **shared)
    with session.setup(config.batch_size, device, [aug]) as setup:
        report = benchmark.measure(setup, aug, config.backbone, session.timing, session.progress)
        session.show(report)


@bench.command()
@click.argument("source", required=False)
@options.data_dir
@options.packing_procs
@_quick
@_kept
def shard(source: str | None, procs: int | None, **shared: Any) -> None:
    """Measure packing and verifying.

    SOURCE is what `shard` takes; without it, 400 MP3s of 30 s are made in a temporary folder, or 100 with
    --quick.

    \b
    siamusic-fast bench shard --quick
    siamusic-fast bench shard fma_small --procs 8
    """
    from siamusic_fast.audio.sources import open_corpus
    from siamusic_fast.bench import shard as benchmark
    from siamusic_fast.cli.bench_session import Session

    session = Session(name="shard", **shared)
    corpus = open_corpus(source, data_dir=session.data_dir) if source else None
    tracks = 100 if session.quick else 400
    session.show(benchmark.measure(corpus, tracks=tracks, procs=procs, progress=session.progress))


@bench.command()
@options.settings(PretrainConfig, "backbone", filled=True)
@options.device
@_quick
@options.data_dir
@_kept
def embed(backbone: str, device: Any, **shared: Any) -> None:
    """Measure how many tracks per second are embedded, from MP3s and from shards.

    Clips of 30 s are made in a temporary folder. In turns with the whole work, each part of it is measured
    alone: decoding or reading, spectrograms, and the network. Ratios say how much of what the parts allow,
    on all cores, the whole work reaches.

    \b
    siamusic-fast bench embed --backbone resnet18 --quick
    """
    from siamusic_fast.bench import embed as benchmark
    from siamusic_fast.cli.bench_session import Session

    session = Session(name="embed", **shared)
    tracks = 48 if session.quick else 200
    session.show(benchmark.measure(backbone, device, tracks=tracks, progress=session.progress))


@bench.command()
@_on_shards
@_training
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    metavar="N",
    help="Number of GPUs that share the cores; one is measured, with its share. 0: the CPU.  [default: 1 if "
    "there is one]",
    panel="Running",
)
@options.quiet
@options.as_json
def doctor(aug: str, backbone: str | None, batch_size: int | None, gpus: int | None, **shared: Any) -> None:
    """Say whether training waits for data, why, and the one change that would help most.

    It takes about a minute.

    \b
    siamusic-fast bench doctor
    siamusic-fast bench doctor --data fma_medium --aug audio --backbone resnet18
    """
    from siamusic_fast.bench import doctor as examination
    from siamusic_fast.bench.timing import QUICK
    from siamusic_fast.cli.bench_session import Session
    from siamusic_fast.processes import launch, pool

    device = launch.device_for(None if gpus is None else min(gpus, 1))
    config = _to_train(device.type, backbone, batch_size)
    share = max(1, pool.cores() // max(1, gpus or 1))
    shared["loader_threads"] = shared["loader_threads"] or share
    session = Session(name="doctor", **shared)
    with session.setup(config.batch_size, device, [aug]) as setup:
        facts = examination.examine(setup, aug, config.backbone, share, QUICK, session.progress)
    session.show_advice(facts, aug, config)


def _to_train(device: str, backbone: str | None, batch_size: int | None) -> PretrainConfig:
    """Return the configuration to train with on this type of device; None is its default."""
    usual = _SMALL if device == "cpu" else {}
    return PretrainConfig(**usual | options.given({"backbone": backbone, "batch_size": batch_size}))
