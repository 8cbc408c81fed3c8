"""Pairs per second of the two-view loader, by stage and engine."""

from collections.abc import Sequence

from siamusic_fast.bench.disk import COLD, read_disk
from siamusic_fast.bench.network import fetch_shards
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import Setup, loader_name, loader_workload, stages
from siamusic_fast.bench.timing import Timing, Workload, measure_in_turns
from siamusic_fast.config import BACKENDS
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

OPENINGS = 2
"""Number of times that everything is opened anew, so that the spread includes what stays while it is open."""


def measure(
    setup: Setup,
    augs: Sequence[str],
    timing: Timing,
    progress: Progress = SILENT,
    *,
    beside: Sequence[Workload] = (),
) -> Report:
    """Measure the stages of the DALI loader, the torch engine and what is `beside` them in turns.

    Of shards in object storage, fetching comes first: the others read what is in the cache then. The torch
    engine computes with all cores. So with fewer threads for the loader the two have no ratio.
    """
    device = setup.device
    workloads = [*stages(setup, augs), *(loader_workload(setup, aug, "torch") for aug in augs), *beside]
    found = measure_in_turns(workloads, timing, device, openings=OPENINGS, title="Loaders", progress=progress)
    fair = augs if setup.loader_threads >= cores() else ()
    pairs = [[named(found, loader_name(aug, backend)) for backend in BACKENDS] for aug in fair]
    shards = setup.plan.tracks.shards
    network = [fetch_shards(setup.shard_set, shards)] if setup.shard_set.url else []
    disk, read = read_disk(setup.tars), setup.bytes_read
    source = "disk" if disk.setting == COLD else "memory, which held the files,"
    return Report(
        title=f"DALI and torch loader on {device.type}, batches of {setup.batch_size}",
        settings={"augs": list(augs), **setup.settings(timing)},
        measurements=(*network, *found, disk),
        ratios=tuple(Ratio.of(ours, other) for ours, other in pairs),
        notes=(
            f"{read:,.0f} bytes are read of a {setup.shard_set.codec} track, so the {source} allows "
            f"{1e9 * disk.median / read:,.0f} tracks/s",
            *(_of_network(one, sum(shard.tracks for shard in shards)) for one in network),
        ),
    )


def _of_network(fetching: Measurement, tracks: int) -> str:
    seconds = tracks / fetching.median
    return (
        f"the network gives {fetching.median:,.1f} tracks/s, so the first epoch of {tracks:,} tracks"
        f" takes at least {seconds:,.1f} s; those after it wait for nothing if the cache holds all shards"
    )
