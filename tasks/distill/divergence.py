"""When a training run is not worth going on with, told from its loss curve alone.

A run that goes on from a checkpoint has the curve of the one that was not stopped, so both end at
the same step.
"""

from __future__ import annotations

import math
from typing import Any

DIVERGED_FACTOR = 3.0
DIVERGED_STEPS = 50
"""Steps in a row whose loss is above DIVERGED_FACTOR times the best before them."""
NOISE = 0.05
"""Losses below this count as this: a student that begins as its teacher has a loss of zero."""
SKIPPED_STEPS = 12
"""Steps in a row that overflow in float16; each halves the scale of the loss, which begins at
2^16."""


def describe_failure(curve: list[dict[str, Any]]) -> str | None:
    """Say what went astray in a run's last steps; None where all is well.

    Args:
        curve: Points with `step`, `loss`, `gradient_norm`, `learning_rate` and `skipped`.
    """
    point = curve[-1]
    at = f"step {point['step']}, learning rate {point['learning_rate']:.2e}"
    numbers = (point["loss"], point["gradient_norm"] or 0.0)
    if not all(map(math.isfinite, numbers)):
        return f"loss {point['loss']}, gradient norm {point['gradient_norm']} at {at}"
    if len(curve) >= SKIPPED_STEPS and all(p["skipped"] for p in curve[-SKIPPED_STEPS:]):
        return f"the gradient overflowed float16 for {SKIPPED_STEPS} steps in a row, up to {at}"
    if len(curve) > DIVERGED_STEPS:
        best = min(curve[:-DIVERGED_STEPS], key=lambda p: float(p["loss"]))
        limit = DIVERGED_FACTOR * max(best["loss"], NOISE)
        if all(p["loss"] > limit for p in curve[-DIVERGED_STEPS:]):
            return (
                f"the loss has been above {DIVERGED_FACTOR:g} times its best, {best['loss']:.4g} "
                f"at step {best['step']}, for {DIVERGED_STEPS} steps: {point['loss']:.4g} at {at}"
            )
    return None
