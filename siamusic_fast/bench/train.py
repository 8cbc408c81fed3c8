"""How fast the training step is, how much of it each loader feeds, and what the hardware would allow."""

import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, multiprocessing, nn
from torch.utils.flop_counter import FlopCounterMode

from siamusic_fast.bench import limits
from siamusic_fast.bench.peers import alike, papers_loader, torch_loader
from siamusic_fast.bench.report import Measurement, Ratio, Report, named
from siamusic_fast.bench.stages import dali_loader, prepare
from siamusic_fast.bench.timing import Contender, Stream, Timing, calls, in_turns
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.models.losses import simsiam_loss
from siamusic_fast.models.networks import SimSiam, place
from siamusic_fast.models.precision import autocast
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training.compiling import compiled
from siamusic_fast.training.pretrain import optimizer_of
from siamusic_fast.training.run_log import Stopwatch
from siamusic_fast.training.schedules import LOG_EVERY

RESIDENT = "train: resident batch"
WITH_DALI = "train: DALI loader"
WITH_TORCH = "train: torch loader"
WITH_PAPER = "train: the paper's loader"
PAPER = "train: resident batch, the paper's step"
ACHIEVED = "train: resident batch, operations"
_OF_RESIDENT = 0.98
"""As the next one asked for on a GPU, of ResNet-50 on 48 x 431."""
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
    process of its own. Of each loader, the share of the time that the step waits for it is measured as well;
    that they make the same is checked before, and of one that does not, a note says why it is left out.
    Raises `ConfigError` if the options do not fit the shards, or a batch is too small to train on.
    """
    device, timing = device or torch.device("cpu"), timing or Timing()
    PretrainConfig(backbone=backbone, batch_size=batch_size)
    setup = prepare(shard_set, batch_size=batch_size, device=device, mel=mel, progress=progress)
    shape = (batch_size, 1, setup.mel.n_mels, setup.mel.frames)
    flops = _flops(backbone, _noise(shape, device)) / batch_size
    with tempfile.TemporaryDirectory() as folder:
        ours = dali_loader(shard_set, setup.config, recipe)
        rivals = {WITH_TORCH: torch_loader(setup, recipe)}
        papers = papers_loader(setup, recipe, Path(folder), timing, progress)
        if isinstance(papers, Contender):
            rivals[WITH_PAPER] = papers
        kept, reasons = alike(ours, list(rivals.values()))
        loaders = {WITH_DALI: ours, **{name: one for name, one in rivals.items() if one in kept}}
        step = new_step(backbone, setup.mel, batch_size, device)
        contenders = [
            resident_step(step, setup.mel, batch_size, device),
            *(fed_step(name, loader, step, device) for name, loader in loaders.items()),
            Contender(name=PAPER, items=batch_size, open=lambda: _papers_step(backbone, shape, device)),
            limits.multiplying(device, torch.bfloat16 if device.type == "cuda" else torch.float32),
        ]
        found = in_turns(contenders, timing, device, title=f"Training {backbone}", progress=progress)

    bound, with_dali, paper, product = (
        named(found, name) for name in (RESIDENT, WITH_DALI, PAPER, limits.MULTIPLYING)
    )
    others = [named(found, name) for name in loaders if name != WITH_DALI]
    asked = device.type == "cuda" and backbone == PretrainConfig.backbone and shape[2:] == (48, 431)
    achieved = Measurement(
        name=ACHIEVED,
        unit=product.unit,
        windows=tuple(rate * flops / 1e12 for rate in bound.windows),
        ours=True,
    )
    return Report(
        title=f"Training {backbone} on {device.type}, batches of {batch_size}, recipe {recipe}",
        settings={
            "shards": shard_set.source,
            "recipe": recipe,
            "backbone": backbone,
            "batch_size": batch_size,
            "mels": setup.mel.n_mels,
            "frames": setup.mel.frames,
            "codec": shard_set.codec,
            "threads": setup.threads,
            "device": device.type,
            "windows": timing.windows,
            "window_seconds": timing.seconds,
            "flops_per_pair": flops,
        },
        measurements=(*found, achieved),
        ratios=(
            Ratio.of(with_dali, bound, _OF_RESIDENT if asked else None),
            *(Ratio.of(other, bound) for other in others),
            Ratio.of(bound, paper, _OVER_PAPER if asked else None),
            Ratio.of(achieved, product),
        ),
        limits={
            **dict.fromkeys((RESIDENT, *loaders), product.median * 1e12 / flops),
            ACHIEVED: product.median,
        },
        notes=(*((papers,) if isinstance(papers, str) else ()), *reasons),
    )


def resident_step(step: "Step", mel: MelConfig, batch_size: int, device: torch.device) -> Contender:
    """Return training on one batch of noise that stays on `device`: the most that any loader could feed."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        views = _noise((batch_size, 1, mel.n_mels, mel.frames), device)
        yield calls(lambda: step(views))

    return Contender(name=RESIDENT, items=batch_size, open=opened, ours=True)


def new_step(backbone: str, mel: MelConfig, batch_size: int, device: torch.device) -> "Step":
    """Return a step of pre-training for batches of that size."""
    return _Step(backbone, (batch_size, 1, mel.n_mels, mel.frames), device, lean=True)


def fed_step(name: str, loader: Contender, step: "Step", device: torch.device) -> Contender:
    """Return training on the batches of `loader`, with the time that is spent waiting for them."""
    fed = _Fed(step, device)

    @contextmanager
    def opened() -> Iterator["_Fed"]:
        with loader.open() as batches:
            fed.batches = Stream(batches)
            yield fed

    return Contender(
        name=name,
        items=loader.items,
        open=opened,
        ahead=loader.ahead,
        setting=loader.setting,
        ours=loader.ours,
        stopwatch=fed.stopwatch,
    )


class Step(Protocol):
    """Trains on a batch."""

    def __call__(self, views: Views) -> None:
        """Take one step."""


class _Step:
    """One step of pre-training; `lean`: as `training.pretrain` does it, else as the paper's code does.

    Lean, it is that of a run with the defaults of `PretrainConfig` in one process, except that nothing is
    logged or saved, and that the learning rate, a constant there, is not set anew. The paper's waits for the
    loss after each step.
    """

    def __init__(self, backbone: str, shape: tuple[int, ...], device: torch.device, *, lean: bool) -> None:
        torch.manual_seed(PretrainConfig.seed)
        simsiam = SimSiam(backbone).to(device)
        self._device, self._lean = device, lean
        self._model: nn.Module = place(simsiam, device) if lean else simsiam
        config = PretrainConfig()
        self._optimizer = (
            optimizer_of(config, simsiam)
            if lean
            else torch.optim.Adam(simsiam.parameters(), config.lr, weight_decay=config.weight_decay)
        )
        if lean and config.compiles_on(device.type):
            self._model = compiled(self._model, torch.zeros(shape, device=device), World(device=device))
        self._losses: deque[Tensor] = deque(maxlen=LOG_EVERY)

    def __call__(self, views: Views) -> None:
        with autocast(self._device) if self._lean else nullcontext():
            p1, p2, z1, z2 = self._model(*views)
            loss = simsiam_loss(p1, p2, z1, z2)
        loss.backward()  # type: ignore[no-untyped-call]
        self._losses.append(loss.detach())
        self._optimizer.step()
        self._optimizer.zero_grad()
        if not self._lean:
            loss.item()


class _Fed:
    """The steps of training on the batches of a loader."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.batches: Stream[Any] = Stream(())
        self.stopwatch = Stopwatch(device)
        self._step, self._device = step, device

    def __iter__(self) -> Iterator[None]:
        for views in self.stopwatch.timed(self.batches):
            # The paper's are on the CPU, and transposed: another code would be compiled for those.
            view_1, view_2 = (view.to(self._device).contiguous() for view in views)
            self._step((view_1, view_2))
            yield

    def skip(self, count: int) -> None:
        """Pass over `count` batches without training on them, which would take long."""
        self.batches.skip(count)


@contextmanager
def _papers_step(backbone: str, shape: tuple[int, ...], device: torch.device) -> Iterator[Iterator[None]]:
    """Give the steps of another process, in which each kernel is waited for; one step for each one asked."""
    ours, theirs = multiprocessing.Pipe()
    before = os.environ.get("CUDA_LAUNCH_BLOCKING")
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when a process first uses the GPU
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_steps,
        args=(theirs, backbone, shape, device, torch.backends.cudnn.benchmark),
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
    step = _Step(backbone, shape, device, lean=False)
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
