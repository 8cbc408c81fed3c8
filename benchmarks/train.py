"""Training as users measure it, and beside it the paper's loader and step, and the peak of the hardware."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import multiprocessing
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import ProcessesClock
from benchmarks.peers import Peer, difference, papers_peer, sample_of
from benchmarks.result import Result, Target
from siamusic_fast.bench import train
from siamusic_fast.bench.report import Measurement, Ratio
from siamusic_fast.bench.stages import Setup, loader_workload
from siamusic_fast.bench.timing import Timing, Workload, calls, measure_in_turns
from siamusic_fast.bench.train import RESIDENT, WITH_DALI, noise, training_step
from siamusic_fast.config import PretrainConfig
from siamusic_fast.models.methods import method_of
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.training.training_step import Views

WITH_PAPER = "train: the paper's loader"
PAPERS_STEP = "train: resident batch, the paper's step"
MULTIPLYING = "limit: product of matrices"
ACHIEVED = "train: resident batch, operations"
_MATRIX = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices."""


def measure(setup: Setup, aug: str, backbone: str, timing: Timing, progress: Progress = SILENT) -> Result:
    """Measure what `siamusic-fast bench train` does, then the rest in turns with a resident batch.

    The step of the paper's public code: float32, no channels_last, one kernel after the other
    (CUDA_LAUNCH_BLOCKING=1), in a process of its own.
    """
    report = train.measure(setup, aug, backbone, timing, progress)
    step, notes = training_step(backbone, setup), list(report.notes)
    resident = replace(train.resident_workload(step, setup), name=f"{RESIDENT}, beside the paper's")
    workloads = [
        resident,
        Workload(name=PAPERS_STEP, items=setup.batch_size, open=lambda: papers_step(backbone, setup)),
        multiplying(setup.device),
    ]
    with tempfile.TemporaryDirectory() as folder:
        peer = papers_peer(setup, aug, Path(folder), timing, progress)
        reason = peer if not isinstance(peer, Peer) else ""
        if isinstance(peer, Peer):
            reason = difference(sample_of(loader_workload(setup, aug)), peer.sample)
            workloads.append(train.fed_workload(WITH_PAPER, peer.workload, step, setup.device))
        if reason:
            notes.append(f"{WITH_PAPER} is not measured: {reason}")
            workloads = workloads[:3]
        found = measure_in_turns(
            workloads, timing, setup.device, title="The paper's", progress=progress, clock=ProcessesClock()
        )
    bound, paper, product, *others = found
    flops = step_flops(backbone, noise(setup.view_shape, setup.device)) / setup.batch_size
    achieved = Measurement(
        name=ACHIEVED,
        unit=product.unit,
        windows=tuple(rate * flops / 1e12 for rate in bound.windows),
        ours=True,
        limit=product.median,
    )
    ratios = [
        Ratio.of(bound, paper),
        Ratio.of(achieved, product),
        *(Ratio.of(one, bound) for one in others[:1]),
    ]
    report = replace(
        report,
        settings={**report.settings, "flops_per_pair": flops},
        measurements=(*report.measurements, *found, achieved),
        ratios=(*report.ratios, *ratios),
        notes=tuple(notes),
    )
    return Result(report=report, targets=targets(setup, backbone, bound.name))


def targets(setup: Setup, backbone: str, resident: str) -> dict[str, Target]:
    """Return what the project asks on a GPU, of ResNet-50 on 48 x 431."""
    asked = setup.device.type == "cuda" and backbone == PretrainConfig.backbone
    if not (asked and setup.view_shape[2:] == (48, 431)):
        return {}
    return {f"{WITH_DALI} / {RESIDENT}": Target(0.98), f"{resident} / {PAPERS_STEP}": Target(3.0)}


def multiplying(device: torch.device) -> Workload:
    """Return multiplying large square matrices, bfloat16 on a GPU and float32 on a CPU."""
    size, dtype = _MATRIX[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        yield calls(lambda: torch.mm(left, right))

    return Workload(name=MULTIPLYING, items=2 * size**3 / 1e12, open=opened, unit="TFLOP/s")


def step_flops(backbone: str, views: Views) -> float:
    """Return the floating-point operations of one step on `views`, forward and backward."""
    model = method_of(PretrainConfig(backbone=backbone)).to(views[0].device)
    with FlopCounterMode(display=False) as counter:
        model(*views).loss.backward()
    return float(counter.get_total_flops())


@contextmanager
def papers_step(backbone: str, setup: Setup) -> Iterator[Iterator[None]]:
    """Give the steps of another process, in which each kernel is waited for; one step for each one asked."""
    ours, theirs = multiprocessing.Pipe()
    before = os.environ.get("CUDA_LAUNCH_BLOCKING")
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when a process first uses the GPU
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_steps,
        args=(theirs, backbone, setup.view_shape, setup.device, torch.backends.cudnn.benchmark),
        daemon=True,
    )
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["CUDA_LAUNCH_BLOCKING"]
        else:
            os.environ["CUDA_LAUNCH_BLOCKING"] = before
    theirs.close()  # or the end of that process would not be noticed
    try:
        yield _asked(ours)
    finally:
        process.terminate()
        process.join()


def _asked(connection: Connection) -> Iterator[None]:
    while True:
        try:
            connection.send("step")
            connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process of the paper's step ended: its error is above.") from error
        yield


def _serve_steps(
    connection: Connection,
    backbone: str,
    shape: tuple[int, ...],
    device: torch.device,
    finds_fastest: bool,
) -> None:
    torch.backends.cudnn.benchmark = finds_fastest  # as the process that asks does
    torch.manual_seed(PretrainConfig.seed)
    model, views = method_of(PretrainConfig(backbone=backbone)).to(device), noise(shape, device)
    optimizer = torch.optim.Adam(
        model.parameters(), PretrainConfig.lr, weight_decay=PretrainConfig.weight_decay
    )
    while connection.recv() == "step":
        loss = model(*views).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        connection.send("done")
