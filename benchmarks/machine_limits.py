"""What this machine allows a loader: copying crops in memory, and copying to the GPU."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from siamusic_fast.bench.timing import Workload, calls
from siamusic_fast.processes.pool import cores

COPYING_CROPS = "limit: copying crops"
COPYING_TO_GPU = "limit: copying to the GPU"
_COPIED_BYTES = 64 * 2**20
"""Size of the memory that a thread copies into: more than a cache holds."""


def copying_crops(tars: Sequence[Path], crop_bytes: int, count: int = 4096) -> Workload:
    """Return copying crops from random places of the mapped `tars` with all cores.

    Each crop goes to another place, as into a batch: one buffer would stay in the cache, which takes half the
    time.
    """
    # Plain arrays: slicing a memmap takes longer than copying a crop does, and holds the interpreter.
    maps = [np.asarray(np.memmap(path, mode="r")) for path in tars]
    large = [tar for tar in maps if len(tar) > crop_bytes]
    rng = np.random.default_rng(0)
    chosen = [large[index] for index in rng.integers(len(large), size=count)]
    starts = [int(rng.integers(len(tar) - crop_bytes)) for tar in chosen]
    crops = [tar[start : start + crop_bytes] for tar, start in zip(chosen, starts, strict=True)]
    threads = cores()
    places = min(-(-_COPIED_BYTES // crop_bytes), -(-count // threads))

    def copy_share(thread: int, buffers: NDArray[np.uint8]) -> None:
        for place, crop in enumerate(crops[thread::threads]):
            np.copyto(buffers[place % places], crop)

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        buffers = [np.empty((places, crop_bytes), np.uint8) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            yield calls(lambda: list(pool.map(copy_share, range(threads), buffers)))

    return Workload(name=COPYING_CROPS, items=count, open=opened, unit="crops/s")


def copying_to_gpu(device: torch.device) -> Workload:
    """Return copying page-locked memory to a GPU."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        source = torch.empty(4 * _COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(source, device=device, pin_memory=False)
        yield calls(lambda: target.copy_(source, non_blocking=True))

    return Workload(name=COPYING_TO_GPU, items=4 * _COPIED_BYTES / 1e9, open=opened, unit="GB/s")
