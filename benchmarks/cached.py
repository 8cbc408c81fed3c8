"""How fast shards in a warm cache are, beside the same shards in a folder of the user.

python -m benchmarks.cached [--windows N] [--seconds X]

Shards are made, and read through a URL until the cache has all of them. Then loaders over the one and the
other are measured in turns: pairs/s, and the CPU time of a batch. The last line is the result as JSON.
"""

import json
import tempfile
from pathlib import Path

import click
import torch

from siamusic_fast.bench.corpus import make_shards, tracks_for
from siamusic_fast.bench.report import Ratio
from siamusic_fast.bench.timing import Timing, Workload, measure_in_turns
from siamusic_fast.cli.console import progress
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.shards.manifest import ShardSet, find_shards
from siamusic_fast.storage.cache import ShardCache

_BATCH = 32
_FRONTEND = Frontend(mel=MelConfig(), mean=-40.0, std=15.0)


@click.command()
@click.option("--windows", default=15)
@click.option("--seconds", default=2.0)
@click.option("--threads", default=2, help="Threads of each loader.")
def main(windows: int, seconds: float, threads: int) -> None:
    """Measure loaders without augmentations, which wait for reading the most, and print what came of it."""
    shown = progress(quiet=False)
    with tempfile.TemporaryDirectory() as folder:
        local = make_shards(Path(folder, "made"), tracks_for(_BATCH), progress=shown)
        cache = ShardCache(folder=Path(folder, "cache"), size=10**12)
        remote = find_shards(f"file://{local.folder.absolute()}", cache=cache)

        def workload(name: str, shard_set: ShardSet) -> Workload:
            def opened() -> TwoViewLoader:
                return TwoViewLoader(
                    shard_set,
                    aug="none",
                    frontend=_FRONTEND,
                    batch_size=_BATCH,
                    backend="torch",
                    loader_threads=threads,
                    window=2,
                )

            return Workload(name=name, items=_BATCH, open=opened, max_ahead=4)

        workloads = [workload("local", local), workload("cached", remote)]
        timing = Timing(windows=windows, seconds=seconds)
        here, cached = measure_in_turns(
            workloads, timing, torch.device("cpu"), openings=3, title="Loaders", progress=shown
        )
    ratio = Ratio.of(cached, here)
    assert here.cpu_ms is not None
    assert cached.cpu_ms is not None
    found = {
        "local_pairs_per_second": here.median,
        "cached_pairs_per_second": cached.median,
        "ratio": ratio.median,
        "spread": ratio.spread,
        "local_cpu_ms": here.cpu_ms,
        "cached_cpu_ms": cached.cpu_ms,
        "cpu_ratio": cached.cpu_ms / here.cpu_ms,
    }
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
