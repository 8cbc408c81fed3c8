"""Learning-rate schedules: pure functions of the step that return a factor of the highest learning rate."""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], float]
"""Takes the step, counted from 0, the number of all steps, and how many of them warm up."""


def warmup(step: int, warmup_steps: int) -> float:
    """Rise linearly: 1/w, 2/w, ..., 1 at the first w = `warmup_steps` steps, and 1 from then on."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def constant(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Warm up, then stay at 1."""
    return warmup(step, warmup_steps)


def cosine(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Warm up, then fall from 1 towards 0 as half a wave of a cosine (Loshchilov & Hutter 2017, equation 5).

    Chen & He 2021, section 4, without restarts; 0 would be reached one step after the last.
    """
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
"""By the names of `PretrainConfig.schedule`."""
