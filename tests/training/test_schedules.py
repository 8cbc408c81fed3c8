import math

import pytest

from siamusic_fast.config import PretrainConfig
from siamusic_fast.training.schedules import StepPlan, constant, cosine

HALF_ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (99, 1.0)])
def test_a_warm_up_of_four_steps_rises_by_quarters(step: int, factor: float) -> None:
    assert constant(step, 100, 4) == factor


@pytest.mark.parametrize("step", [0, 1, 50, 99])
def test_without_a_warm_up_the_constant_schedule_is_one_throughout(step: int) -> None:
    assert constant(step, 100) == 1


# cos of 0, 45, 90, 135 degrees: 1, 0.7071, 0, -0.7071; the factor is half of one more.
@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (2, (1 + HALF_ROOT) / 2), (4, 0.5), (6, (1 - HALF_ROOT) / 2), (8, 0.0)]
)
def test_the_cosine_of_eight_steps_at_each_eighth_of_a_circle(step: int, factor: float) -> None:
    assert cosine(step, 8) == pytest.approx(factor)


# Two steps of warm-up, then the cosine of the eight that are left.
@pytest.mark.parametrize(("step", "factor"), [(0, 0.5), (1, 1.0), (2, 1.0), (6, 0.5), (10, 0.0)])
def test_the_cosine_starts_when_the_warm_up_ends(step: int, factor: float) -> None:
    assert cosine(step, 10, 2) == pytest.approx(factor)


def test_a_run_that_only_warms_up_ends_at_the_highest_rate() -> None:
    assert [cosine(step, 2, 2) for step in range(2)] == [0.5, 1.0]


def test_an_extended_run_warms_up_once_and_has_a_cosine_for_each_part() -> None:
    config = PretrainConfig(epochs=6, schedule="cosine", lr=2.0, warmup_epochs=1)
    plan = StepPlan(config, batches=2, extended_at=(2, 3))
    rates = [plan.lr(step) for step in range(plan.steps)]
    six_steps = [2.0, 1 + math.cos(math.pi / 6), 1.5, 1.0, 0.5, 1 - math.cos(math.pi / 6)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.0, 2.0, 1.0, *six_steps])
