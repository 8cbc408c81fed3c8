"""Measures how fast object storage gives shards."""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from siamusic_fast.bench.report import Measurement
from siamusic_fast.pipelines.fetch_ahead import THREADS
from siamusic_fast.shards.manifest import Shard, ShardSet
from siamusic_fast.storage.cache import ShardCache
from siamusic_fast.storage.remote import RemoteFolder

FETCH = "network: fetch shards"
_FETCHES = 3
_MAX_BYTES = 2**30


def fetch_shards(shard_set: ShardSet, shards: Sequence[Shard]) -> Measurement:
    """Fetch up to 1 GiB of `shards` three times into an empty cache; the rate is that of their tracks.

    The cache is a folder beside the one that training would use. A loader waits for as much in the first
    epoch, and for nothing when all shards are in the cache.
    """
    assert shard_set.cache is not None
    chosen = [shards[0]]
    for shard in shards[1:]:
        if sum(one.bytes for one in chosen) + shard.bytes <= _MAX_BYTES:
            chosen.append(shard)
    remote = RemoteFolder(shard_set.url)
    rates = []
    for _ in range(_FETCHES):
        with tempfile.TemporaryDirectory(dir=shard_set.cache.folder, prefix="bench-") as folder:
            cache = ShardCache(folder=Path(folder), size=2 * sum(shard.bytes for shard in chosen))

            def fetch(shard: Shard, cache: ShardCache = cache) -> None:
                cache.open(remote, shard.file, shard.bytes, shard.sha256).close()

            start = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(fetch, chosen))
            rates.append(sum(shard.tracks for shard in chosen) / (time.perf_counter() - start))
    setting = f"nothing cached, {THREADS} at a time"
    return Measurement(name=FETCH, unit="pairs/s", windows=tuple(rates), setting=setting)
