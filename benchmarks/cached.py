"""How fast shards in a warm cache are read, beside the same shards in a folder: python -m benchmarks.cached.

Shards are made, and read through a URL until the cache has all of them. Then batches are planned, read and
turned into spectrograms by one thread, from the one and the other in turns; each round opens the tars anew.
The local shards are measured twice, which shows how much equal work differs on this machine. The last line is
the result as JSON: CPU time and wall time of a pair in milliseconds, as the median and, where other programs
disturb least, the minimum.
"""

import dataclasses
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.opening import repeated_shards
from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.torch.engine import TorchEngine, read_and_compute
from siamusic_fast.shards.manifest import ShardSet, find_shards, write_manifest
from siamusic_fast.storage.cache import ShardCache

_TRACKS, _BATCH, _BATCHES = 4_096, 64, 8
_FRONTEND = Frontend(mel=MelConfig(seconds=0.5), mean=-40.0, std=15.0)


class _Work:
    """The first batches of a loader, made by the thread that asks."""

    def __init__(self, shard_set: ShardSet) -> None:
        loader = TwoViewLoader(
            shard_set, aug="none", frontend=_FRONTEND, batch_size=_BATCH, backend="torch", window=2
        )
        self._plan, self._reader = loader.plan, Reader(loader.plan.tracks, _FRONTEND)
        self._engine = TorchEngine(loader.plan, torch.device("cpu"))
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def round(self) -> None:
        self._reader.close()  # so that each round opens the tars again
        cpu, wall = time.thread_time(), time.perf_counter()
        for batch in range(_BATCHES):
            self._reader.reach(self._plan, (0, batch))
            read_and_compute(self._plan.batch((0, batch)), self._reader, self._engine)
        per_pair = 1_000 / (_BATCHES * _BATCH)
        self.cpu.append(per_pair * (time.thread_time() - cpu))
        self.wall.append(per_pair * (time.perf_counter() - wall))

    def result(self) -> dict[str, float]:
        self._reader.close()
        return {
            "cpu_ms_median": statistics.median(self.cpu),
            "cpu_ms_min": min(self.cpu),
            "wall_ms_median": statistics.median(self.wall),
            "wall_ms_min": min(self.wall),
        }


def _distinct(shard_set: ShardSet) -> ShardSet:
    """Return the set with tars that differ in their last bytes: equal ones are one tar in the cache."""
    shards = []
    for number, shard in enumerate(shard_set.splits["training"]):
        path = shard_set.path(shard.file)
        content = path.read_bytes()[:-4] + number.to_bytes(4)
        path.unlink()  # it may be one file under several names
        path.write_bytes(content)
        shards.append(dataclasses.replace(shard, sha256=hashlib.sha256(content).hexdigest()))
    write_manifest(dataclasses.replace(shard_set, splits={"training": tuple(shards)}))
    return find_shards(shard_set.folder)


@click.command()
@click.option("--rounds", default=24)
def main(rounds: int) -> None:
    """Measure both in turns, and print what came of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        local = _distinct(repeated_shards(Path(folder, "made"), _TRACKS, seconds=1.0))
        cache = ShardCache(folder=Path(folder, "cache"), size=10**12)
        remote = find_shards(f"file://{folder}/made", cache=cache)
        works = {"local": _Work(local), "cached": _Work(remote), "local again": _Work(local)}
        for work in works.values():  # fills the cache, and what Python and torch keep
            work.round()
            work.cpu.clear()
            work.wall.clear()
        for number in range(rounds):
            for work in list(works.values())[:: -1 if number % 2 else 1]:
                work.round()
        click.echo(json.dumps({name: work.result() for name, work in works.items()}))


if __name__ == "__main__":
    main()
