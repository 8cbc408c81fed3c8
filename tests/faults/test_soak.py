"""A loader that runs for long takes as much memory, files and threads in the end as half way."""

import pytest

from siamusic_fast.shards.manifest import ShardSet
from tests.faults.tries import Tries
from tests.pipelines.helpers import BACKENDS, two_views
from tests.pipelines.test_loaders import MEGABYTES, SMALL, resident_megabytes, threads_and_files

pytestmark = pytest.mark.faults
_BATCH = 24
_LOOKS = 20
"""Looks at memory, files and threads, spread over the tries: each takes longer than a batch."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_files_and_threads_stay_as_they_are(shard_set: ShardSet, backend: str, tries: Tries) -> None:
    with two_views(shard_set, "image", backend=backend, frontend=SMALL, batch_size=_BATCH) as loader:
        started = None
        for look in range(1, _LOOKS + 1):
            while tries.counts[0] < look * tries.count // _LOOKS:
                tries.counts[0] += _BATCH * sum(1 for _ in loader)
            if look >= _LOOKS // 2:  # until then buffers grow to what the largest batch takes
                memory, others = resident_megabytes(), threads_and_files()
                started = started or (memory, others)
                assert others == started[1]
                assert memory - started[0] < MEGABYTES
                tries.counts[1] = tries.counts[0]
