"""Learning-rate schedules, and the counting of batches and steps: pure functions of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from siamusic_fast.config import FinetuneConfig, PretrainConfig

LOG_EVERY = 10
"""Steps between two lines of the log; only then are values fetched from the device."""

Schedule = Callable[[int, int, int], float]
"""Maps the step, counted from 0, the number of steps and that of warm-up steps to a factor of the rate."""


def constant(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Rise linearly in the first w = `warmup_steps` steps: 1/w, 2/w, ..., 1. Then stay at 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Warm up, then fall from 1 towards 0 along half a cosine (Loshchilov & Hutter 2017, equation 5).

    As in Chen & He 2021, section 4. The step after the last one would have 0.
    """
    if step < warmup_steps:
        return constant(step, steps, warmup_steps)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
"""The schedules by the names that `schedule` has for them in the settings."""


def rate_factor(
    config: PretrainConfig | FinetuneConfig,
    steps_per_epoch: int,
    step: int,
    extended_at: tuple[int, ...] = (),
) -> float:
    """Return what the learning rates of `config` are multiplied by at `step`, counted from 0 in the run.

    `extended_at` are the epochs at which the run was to end before it was extended. The schedule starts anew,
    without warm-up, after each.
    """
    assert config.schedule is not None
    assert config.warmup_epochs is not None
    ends = [epochs * steps_per_epoch for epochs in (*extended_at, config.epochs)]
    start = max([0, *(end for end in ends if end <= step)])
    steps = min(end for end in ends if end > step) - start
    warmup_steps = 0 if start else round(config.warmup_epochs * steps_per_epoch)
    return SCHEDULES[config.schedule](step - start, steps, warmup_steps)


@dataclass(frozen=True)
class StepPlan:
    """Which batches make a step of the optimizer, and the learning rate of each step."""

    config: PretrainConfig
    batches: int
    """Batches per epoch and process."""
    extended_at: tuple[int, ...] = ()
    """Epochs at which the run was to end before it was extended."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the batches that are left at the end of an epoch make a step too."""
        return math.ceil(self.batches / self.config.grad_accum_steps)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def batches_done(self, step: int, epoch: int) -> int:
        """Return how many batches of `epoch`, counted from 1, the first `step` steps of the run include."""
        steps = step - (epoch - 1) * self.steps_per_epoch
        return min(steps * self.config.grad_accum_steps, self.batches)

    def ends_step(self, batch: int) -> bool:
        """Whether `batch`, counted from 1 in its epoch, is the last one of a step."""
        return batch % self.config.grad_accum_steps == 0 or batch == self.batches

    def batches_in_step(self, batch: int) -> int:
        """Return the number of batches in the step that `batch`, counted from 1 in its epoch, belongs to."""
        remainder = self.batches % self.config.grad_accum_steps
        return self.config.grad_accum_steps if batch <= self.batches - remainder else remainder

    def lr(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0 in the run."""
        return self.config.lr * rate_factor(self.config, self.steps_per_epoch, step, self.extended_at)

    def is_logged(self, step: int) -> bool:
        """Whether the log gets a line after the first `step` steps of the run."""
        return step % self.steps_per_epoch % LOG_EVERY == 0
