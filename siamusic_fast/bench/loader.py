"""Pairs per second of the two-view loader: by stage and engine, beside what the machine allows."""

from collections.abc import Sequence
from dataclasses import replace

from siamusic_fast.bench.machine_limits import (
    COPYING_CROPS,
    COPYING_TO_GPU,
    copying_crops,
    copying_to_gpu,
    read_disk,
)
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import HAND_OVER, READ, Setup, loader_name, loader_workload, stages
from siamusic_fast.bench.timing import Timing, measure_in_turns
from siamusic_fast.config import BACKENDS
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

OPENINGS = 2
"""Number of times that everything is opened anew, so that the spread includes what stays while it is open."""


def measure(setup: Setup, augs: Sequence[str], timing: Timing, progress: Progress = SILENT) -> Report:
    """Measure the stages of the DALI loader, the torch engine and the machine's limits in turns.

    The torch engine computes with all cores. So with fewer threads for the loader the two have no ratio.
    """
    device = setup.device
    workloads = [
        *stages(setup, augs),
        *(loader_workload(setup, aug, "torch") for aug in augs),
        copying_crops(setup.tars, setup.crop_bytes),
        *([copying_to_gpu(device)] if device.type == "cuda" else []),
    ]
    found = measure_in_turns(workloads, timing, device, openings=OPENINGS, title="Loaders", progress=progress)
    fair = augs if setup.loader_threads >= cores() else ()
    pairs = [[named(found, loader_name(aug, backend)) for backend in BACKENDS] for aug in fair]
    disk, read = read_disk(setup.tars), setup.bytes_read
    source = "disk" if disk.cold else "memory, which held the files,"
    return Report(
        title=f"DALI and torch loader on {device.type}, batches of {setup.batch_size}",
        settings={"augs": list(augs), **setup.settings(timing)},
        measurements=(*_with_limits(found, setup), disk.measurement),
        ratios=tuple(Ratio.of(ours, other) for ours, other in pairs),
        notes=(
            f"{read:,.0f} bytes are read of a {setup.shard_set.codec} track, so the {source} allows "
            f"{disk.bytes_per_second / read:,.0f} tracks/s",
        ),
    )


def _with_limits(found: Sequence[Measurement], setup: Setup) -> list[Measurement]:
    """Return the measurements with what the machine allows for reading and for handing over."""
    copied = named(found, COPYING_CROPS).median
    limits = {READ: copied, HAND_OVER: copied}
    for one in found:
        if one.name == COPYING_TO_GPU:
            limits[HAND_OVER] = 1e9 * one.median / setup.crop_bytes
    return [replace(one, limit=limits.get(one.name)) for one in found]
