"""How fast the training step is, how much of it each loader feeds, and what the hardware would allow."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.utils.flop_counter import FlopCounterMode

from siamusic_fast.bench import limits
from siamusic_fast.bench.loader import torch_loaders
from siamusic_fast.bench.report import Ratio, Report, named
from siamusic_fast.bench.stages import dali_loader
from siamusic_fast.bench.timing import Contender, Timing, in_turns
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.pipelines.options import LoaderOptions
from siamusic_fast.pipelines.stats import estimate
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pool import cores
from siamusic_fast.training.losses import simsiam_loss
from siamusic_fast.training.models import SimSiam, place

RESIDENT = "train: resident batch"
WITH_DALI = "train: DALI loader"
WITH_TORCH = "train: torch loader"
PAPER = "train: resident batch, the paper's step"
_OF_RESIDENT = 0.98
_OVER_PAPER = 3.0

Views = tuple[Tensor, Tensor]


def measure(
    shard_set: ShardSet,
    *,
    recipe: str = "image",
    backbone: str = PretrainConfig.backbone,
    mel: MelConfig | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    timing: Timing | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Train SimSiam with `backbone` in turns on one batch that stays where it is and on those of the loaders.

    The first is the most that any loader could feed. Beside them, on a resident batch, the step of the
    paper's public code: float32, no channels_last, one kernel after the other (CUDA_LAUNCH_BLOCKING=1), in a
    process of its own. Raises `ConfigError` if the options do not fit the shards.
    """
    device, timing = device or torch.device("cpu"), timing or Timing()
    mel = mel or MelConfig(sample_rate=shard_set.sample_rate)
    options: LoaderOptions = {
        "mel": mel,
        "batch_size": batch_size,
        "device": device,
        "threads": cores(),
        "normalisation": estimate(shard_set, mel, progress),
    }
    loaders = {
        WITH_DALI: dali_loader(shard_set, options, recipe),
        WITH_TORCH: torch_loaders(shard_set, options, recipe)[-1],
    }
    step = _Step(backbone, device, lean=True)
    shape = (batch_size, 1, mel.n_mels, mel.frames)
    flops = _flops(backbone, _noise(shape, device)) / batch_size
    contenders = [
        resident_step(backbone, mel, batch_size, device),
        *(
            Contender(name=name, items=batch_size, open=_fed(step, loader))
            for name, loader in loaders.items()
        ),
        Contender(name=PAPER, items=batch_size, open=lambda: _papers_step(backbone, shape, device)),
    ]
    found = in_turns(contenders, timing, device, title=f"Training {backbone}", progress=progress)

    bound, with_dali, with_torch, paper = (
        named(found, name) for name in (RESIDENT, WITH_DALI, WITH_TORCH, PAPER)
    )
    product = limits.matmul(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    achieved = bound.median * flops
    fed = Ratio.of(with_dali, bound, _OF_RESIDENT)
    return Report(
        title=f"Training {backbone} on {device.type}, batches of {batch_size}, recipe {recipe}",
        settings={
            "shards": shard_set.source,
            "recipe": recipe,
            "backbone": backbone,
            "batch_size": batch_size,
            "device": device.type,
            "windows": timing.windows,
            "window_seconds": timing.seconds,
            "flops_per_pair": flops,
            "flops_per_second": achieved,
            "matmul_flops_per_second": product,
        },
        measurements=tuple(found),
        ratios=(
            fed,
            Ratio.of(with_torch, bound),
            Ratio.of(bound, paper, _OVER_PAPER if device.type == "cuda" else None),
        ),
        limits=dict.fromkeys((RESIDENT, WITH_DALI, WITH_TORCH), product / flops),
        notes=(
            f"feeding takes {max(0.0, 1 - fed.median):.0%} of the time with the DALI loader",
            f"{achieved / 1e12:.3g} TFLOP/s in the step; a product of matrices reaches "
            f"{product / 1e12:.3g} here: {achieved / product:.0%}",
            f"the torch loader: {loaders[WITH_TORCH].name.removeprefix('torch: ')}",
        ),
    )


def resident_step(backbone: str, mel: MelConfig, batch_size: int, device: torch.device) -> Contender:
    """Return training on one batch of noise that stays on `device`: the most that any loader could feed."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        views = _noise((batch_size, 1, mel.n_mels, mel.frames), device)
        yield _endlessly(_Step(backbone, device, lean=True), views)

    return Contender(name=RESIDENT, items=batch_size, open=opened)


class _Step:
    """One step of pre-training; `lean`: as `training.pretrain` does it, else as the paper's code does."""

    def __init__(self, backbone: str, device: torch.device, *, lean: bool) -> None:
        torch.manual_seed(0)
        simsiam = SimSiam(backbone).to(device)
        self._lean = lean
        self._on_gpu = device.type == "cuda"
        self._model: Any = place(simsiam, device) if lean else simsiam
        if lean and self._on_gpu:
            self._model = torch.compile(self._model)
        self._optimizer = torch.optim.Adam(simsiam.parameters(), lr=1e-3, weight_decay=1e-5, fused=lean)

    def __call__(self, views: Views) -> None:
        half = self._lean and self._on_gpu
        with torch.autocast("cuda" if self._on_gpu else "cpu", torch.bfloat16, enabled=half):
            p1, p2, z1, z2 = self._model(*views)
            loss = simsiam_loss(p1, p2, z1, z2)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if not self._lean:
            loss.item()


def _endlessly(step: _Step, views: Views) -> Iterator[None]:
    while True:
        step(views)
        yield


def _fed(step: _Step, loader: Contender) -> Any:
    @contextmanager
    def opened() -> Iterator["_Fed"]:
        with loader.open() as batches:
            yield _Fed(step, batches)

    return opened


class _Fed:
    """The steps of training on the batches of a loader."""

    def __init__(self, step: _Step, batches: Iterable[object]) -> None:
        self._step = step
        self._batches: Iterable[Any] = batches

    def __iter__(self) -> Iterator[None]:
        for views in self._batches:
            self._step(views)
            yield


@contextmanager
def _papers_step(backbone: str, shape: tuple[int, ...], device: torch.device) -> Iterator[Iterator[None]]:
    """Give the steps of another process, in which each kernel is waited for; one step for each one asked."""
    ours, theirs = multiprocessing.Pipe()
    before = os.environ.get("CUDA_LAUNCH_BLOCKING")
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when a process first uses the GPU
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_steps, args=(theirs, backbone, shape, device), daemon=True
    )
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["CUDA_LAUNCH_BLOCKING"]
        else:
            os.environ["CUDA_LAUNCH_BLOCKING"] = before
    try:
        yield _asked(ours)
    finally:
        process.terminate()
        process.join()


def _asked(connection: Connection) -> Iterator[None]:
    while True:
        connection.send("step")
        connection.recv()
        yield


def _serve_steps(connection: Connection, backbone: str, shape: tuple[int, ...], device: torch.device) -> None:
    step = _Step(backbone, device, lean=False)
    views = _noise(shape, device)
    while connection.recv() == "step":
        step(views)
        connection.send("done")


def _flops(backbone: str, views: Views) -> float:
    """Return the floating-point operations of one step on `views`, forward and backward."""
    model = SimSiam(backbone).to(views[0].device)
    with FlopCounterMode(display=False) as counter:
        simsiam_loss(*model(*views)).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def _noise(shape: tuple[int, ...], device: torch.device) -> Views:
    return torch.randn(shape, device=device), torch.randn(shape, device=device)
