"""The loader as users measure it, and beside it the paper's loader, the plan of a batch, and targets."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.clock import ProcessesClock
from benchmarks.machine_limits import COPYING_CROPS, COPYING_TO_GPU, copying_crops, copying_to_gpu
from benchmarks.peers import Peer, difference, papers_peer, sample_of
from benchmarks.result import Result, Target, cpu_ratio
from siamusic_fast.bench import loader
from siamusic_fast.bench.report import Measurement, Ratio, named
from siamusic_fast.bench.stages import FEATURES, HAND_OVER, READ, Setup, loader_name, loader_workload
from siamusic_fast.bench.timing import Timing, Workload, measure_in_turns
from siamusic_fast.pipelines.dali.engine import DaliEngine
from siamusic_fast.pipelines.plan import Plan
from siamusic_fast.pipelines.recipes import to_recipe
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

BATCH_ON_GPU, BATCH_ON_CPU = 256, 64
"""Sizes of the batches that the targets were set for, on shards of wav."""
_PLANNED = 256
"""Pairs in the batch whose plan has a target of its own."""
_HELD = 1.25
"""Factor over the rate of the loader below which a ceiling is what holds it."""
GPU = "H200"


def measure(
    setup: Setup,
    augs: Sequence[str],
    timing: Timing,
    *,
    with_paper: bool = True,
    progress: Progress = SILENT,
) -> Result:
    """Measure what `siamusic-fast bench loader` does in turns with the limits; then the plan and the peer."""
    limits = [copying_crops(setup.tars, setup.crop_bytes)]
    if setup.device.type == "cuda":
        limits.append(copying_to_gpu(setup.device))
    report = loader.measure(setup, augs, timing, progress, beside=limits)
    found = with_limits(report.measurements, setup)
    planned = [plan_of_batch(setup, aug) for aug in augs]
    plans = measure_in_turns(planned, timing, setup.device, title="Plans", progress=progress)
    found += [_in_milliseconds(one) for one in plans]
    ratios, notes = list(report.ratios), list(report.notes)
    for aug in augs:
        ours = named(found, loader_name(aug, "dali"))
        if setup.loader_threads >= cores():
            ratios.append(cpu_ratio(ours, named(found, loader_name(aug, "torch"))))
        if aug != "none":
            ratios.append(Ratio.of(ours, named(found, FEATURES)))
        if with_paper:
            beside, missing = _beside_paper(setup, aug, timing, progress)
            found += beside
            notes += missing
            ratios += [Ratio.of(*beside)] if beside else []
        if setup.device.type == "cuda":
            notes.append(held_on_gpu(found, aug, setup.loader_threads))
    ratios.append(Ratio.of(named(found, READ), named(found, COPYING_CROPS)))
    report = replace(report, measurements=tuple(found), ratios=tuple(ratios), notes=tuple(notes))
    return Result(report=report, targets=targets(setup))


def with_limits(found: Sequence[Measurement], setup: Setup) -> list[Measurement]:
    """Return the measurements with what the machine allows for reading and for handing over."""
    copied = named(found, COPYING_CROPS).median
    limits = {READ: copied, HAND_OVER: copied}
    for one in found:
        if one.name == COPYING_TO_GPU:
            limits[HAND_OVER] = 1e9 * one.median / setup.crop_bytes
    return [replace(one, limit=limits.get(one.name)) for one in found]


def targets(setup: Setup) -> dict[str, Target]:
    """Return what the project asks, of shards and batches as it was asked for."""
    on_gpu = setup.device.type == "cuda"
    asked = setup.shard_set.codec == "wav" and setup.batch_size == (BATCH_ON_GPU if on_gpu else BATCH_ON_CPU)
    found = {f"DALI: plan of {_PLANNED} pairs, image": Target(8.0, at_most=True)}
    if not asked:
        return found
    if on_gpu:
        if GPU in torch.cuda.get_device_name(setup.device):
            found |= {"DALI: image": Target(20_000), "DALI: audio": Target(10_000)}
        pairs = [f"DALI: {aug} / torch: {aug}" for aug in ("image", "audio")]
        return (
            found
            | dict.fromkeys(pairs, Target(2.0))
            | {f"CPU seconds: {pair}": Target(0.5, at_most=True) for pair in pairs}
        )
    if setup.loader_threads == cores() == 2:
        found[HAND_OVER] = Target(21_000)
    return found | {f"DALI: image / {FEATURES}": Target(0.85)}


def plan_of_batch(setup: Setup, aug: str) -> Workload:
    """Return planning batches of 256 pairs; a set of fewer tracks has each several times."""
    tracks = setup.plan.tracks
    repeated = np.resize(np.arange(len(tracks)), max(_PLANNED, len(tracks)))
    plan = Plan(
        tracks.only(np.sort(repeated)),
        setup.frontend,
        recipe=to_recipe(aug, setup.frontend.mel),
        views=2,
        batch_size=_PLANNED,
    )
    engine = DaliEngine(plan, setup.device, threads=1)

    @contextmanager
    def opened() -> Iterator[Iterator[object]]:
        yield (engine.begin(plan.batch((0, 0))) for _ in itertools.count())

    return Workload(name=f"DALI: plan of {_PLANNED} pairs, {aug}", items=_PLANNED, open=opened, ours=True)


def _in_milliseconds(plan: Measurement) -> Measurement:
    """Return the CPU time of a plan in place of its rate."""
    windows = tuple(_PLANNED * milliseconds for milliseconds in plan.cpu_windows)
    return Measurement(name=plan.name, unit="ms of one core", windows=windows, ours=True)


def _beside_paper(
    setup: Setup, aug: str, timing: Timing, progress: Progress
) -> tuple[list[Measurement], list[str]]:
    """Return the rates of the DALI loader and the paper's in turns; or nothing, and why."""
    ours = loader_workload(setup, aug)
    with tempfile.TemporaryDirectory() as folder:
        peer = papers_peer(setup, aug, Path(folder), timing, progress)
        if not isinstance(peer, Peer):
            return [], [peer]
        if reason := difference(sample_of(ours), peer.sample):
            return [], [f"{peer.workload.name} is not measured: it {reason}"]
        found = measure_in_turns(
            [replace(ours, name=f"{ours.name}, beside the paper's loader", extends=""), peer.workload],
            timing,
            setup.device,
            openings=loader.OPENINGS,
            title=f"{aug} and the paper's loader",
            progress=progress,
            clock=ProcessesClock(),
        )
        return found, []


def held_on_gpu(found: Sequence[Measurement], aug: str, threads: int) -> str:
    """Return in words what holds the loader on a GPU, where all stages run at once: the lowest ceiling.

    If none is near the rate, the kernels are what is left.
    """
    ours, handing_over = named(found, f"DALI: {aug}"), named(found, HAND_OVER)
    plan_ms = named(found, f"DALI: plan of {_PLANNED} pairs, {aug}").median
    assert ours.cpu_ms is not None
    assert handing_over.limit is not None
    ceilings = {
        "the plan, on one core": 1000 * _PLANNED / plan_ms,
        READ: named(found, READ).median,
        HAND_OVER: handing_over.median,
        "the bus": handing_over.limit,
        f"the CPU time, on {threads} threads": 1000 * threads / ours.cpu_ms,
    }
    lowest = min(ceilings, key=ceilings.__getitem__)
    holds = lowest if ceilings[lowest] < _HELD * ours.median else "the kernels, as nothing else is near"
    allowed = ", ".join(f"{name} {rate:,.0f}" for name, rate in ceilings.items())
    return f"what holds {ours.name} at {ours.median:,.0f} pairs/s: {holds}; allowed are: {allowed}"
