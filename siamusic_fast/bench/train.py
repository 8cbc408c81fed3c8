"""Measures how fast the training step is, and how much of that rate each engine's loader can feed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from siamusic_fast.bench.report import Ratio, Report, named
from siamusic_fast.bench.stages import Setup, loader_workload
from siamusic_fast.bench.timing import Stream, Timing, Workload, calls, measure_in_turns
from siamusic_fast.config import PretrainConfig
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.training.run_log import Stopwatch
from siamusic_fast.training.training_step import TrainingStep, Views

RESIDENT = "train: resident batch"
WITH_DALI = "train: DALI loader"
WITH_TORCH = "train: torch loader"

Step = Callable[[Views], None]
"""Trains on the two views of a batch."""


def measure(setup: Setup, aug: str, backbone: str, timing: Timing, progress: Progress = SILENT) -> Report:
    """Train SimSiam with `backbone` in turns on one resident batch and on the batches of each loader.

    The rate on a batch that stays on the device is the largest that any loader could feed. For each loader,
    the share of the time that the step waits for data is measured as well. Raises `ConfigError` if training
    would refuse the options.
    """
    step = training_step(backbone, setup)
    fed = {WITH_DALI: loader_workload(setup, aug), WITH_TORCH: loader_workload(setup, aug, "torch")}
    workloads = [
        resident_workload(step, setup),
        *(fed_workload(name, loader, step, setup.device) for name, loader in fed.items()),
    ]
    found = measure_in_turns(workloads, timing, setup.device, title=f"Training {backbone}", progress=progress)
    resident = named(found, RESIDENT)
    return Report(
        title=f"Training {backbone} with the DALI and the torch loader on {setup.device.type}, batches of "
        f"{setup.batch_size}, {aug}",
        settings={"aug": aug, "backbone": backbone, **setup.settings(timing)},
        measurements=tuple(found),
        ratios=tuple(Ratio.of(named(found, name), resident) for name in fed),
    )


def training_step(backbone: str, setup: Setup) -> TrainingStep:
    """Return the step of pre-training `backbone` with the defaults of `PretrainConfig`, in one process."""
    config = PretrainConfig(mel=setup.frontend.mel, backbone=backbone, batch_size=setup.batch_size)
    return TrainingStep(config, setup.device, compiles=config.compiles_on(setup.device.type))


def resident_workload(step: Step, setup: Setup) -> Workload:
    """Return training on one batch of noise that stays on the device."""

    @contextmanager
    def opened() -> Iterator[Iterator[None]]:
        views = noise(setup.view_shape, setup.device)
        yield calls(lambda: step(views))

    return Workload(name=RESIDENT, items=setup.batch_size, open=opened, ours=True)


def fed_workload(name: str, loader: Workload, step: Step, device: torch.device) -> Workload:
    """Return training on the batches of `loader`, with the time that is spent waiting for them."""
    fed = _Fed(step, device)

    @contextmanager
    def opened() -> Iterator["_Fed"]:
        with loader.open() as batches:
            fed.batches = Stream(batches)
            yield fed

    return Workload(
        name=name,
        items=loader.items,
        open=opened,
        max_ahead=loader.max_ahead,
        setting=loader.setting,
        ours=loader.ours,
        read_timer=fed.timer.read,
    )


class _Fed:
    """The steps of training on the batches of a loader."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.batches: Stream[Any] = Stream(())
        self.timer = Stopwatch(device)
        self._step, self._device = step, device

    def __iter__(self) -> Iterator[None]:
        for views in self.timer.timed(self.batches):
            # Transposed views, and those of a loader on the CPU, would be compiled for once more.
            view_1, view_2 = (view.to(self._device).contiguous() for view in views)
            self._step((view_1, view_2))
            yield

    def skip(self, count: int) -> None:
        """Pass over `count` batches without training on them, which would take long."""
        self.batches.skip(count)


def noise(shape: tuple[int, ...], device: torch.device) -> Views:
    """Return a batch of two views."""
    return torch.randn(shape, device=device), torch.randn(shape, device=device)
