"""When a training run is given up: at the first number that is none, or after a stated time."""

import math
from typing import Any

from tasks.distill.divergence import (
    DIVERGED_STEPS,
    NOISE,
    SKIPPED_STEPS,
    describe_failure,
)


def curve(losses: list[float], skipped: int = 0, norm: float | None = 1.0) -> list[dict[str, Any]]:
    """A loss curve; its last `skipped` steps overflowed."""
    return [
        {
            "step": step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": 1e-3,
            "skipped": step >= len(losses) - skipped,
        }
        for step, loss in enumerate(losses)
    ]


def test_a_falling_loss_is_well() -> None:
    assert describe_failure(curve([5.0 / (1 + step) for step in range(400)])) is None
    assert describe_failure(curve([3.0], norm=None)) is None


def test_numbers_that_are_none_stop_at_once() -> None:
    assert "loss nan" in str(describe_failure(curve([2.0, math.nan])))
    assert "gradient norm inf" in str(describe_failure(curve([2.0, 2.0], norm=math.inf)))


def test_a_loss_three_times_the_best_stops_after_the_stated_steps() -> None:
    well = [4.0, 2.0, 1.0]
    assert describe_failure(curve(well + [3.1] * (DIVERGED_STEPS - 1))) is None
    failure = str(describe_failure(curve(well + [3.1] * DIVERGED_STEPS)))
    assert "above 3 times its best, 1 at step 2" in failure
    assert f"for {DIVERGED_STEPS} steps" in failure
    bad = [3.1] * DIVERGED_STEPS
    bad[10] = 2.9  # once below, and the count begins again
    assert describe_failure(curve(well + bad)) is None


def test_a_student_that_begins_as_its_teacher_may_move() -> None:
    assert describe_failure(curve([0.0] + [2 * NOISE] * 200)) is None
    assert describe_failure(curve([0.0] + [4 * NOISE] * 200))


def test_overflow_in_float16_is_borne_for_a_while() -> None:
    assert describe_failure(curve([2.0] * 30, skipped=SKIPPED_STEPS - 1)) is None
    failure = describe_failure(curve([2.0] * 30, skipped=SKIPPED_STEPS))
    assert "overflowed float16" in str(failure)
