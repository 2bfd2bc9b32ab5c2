"""What the sweep teaches: each unit's contribution to the utility."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.prune.sweep.regression import Fitted, HeldOut, fit_utilities, hold_out
from tasks.prune.sweep.sweep import SweepUnit, list_submodels

MAX_LEFT_OUT = 0.1
"""Largest fraction of sub-models whose utility may be no finite number."""

FFN_SPREADS = (1.0, 0.3, 0.1)
"""By how much less than a KV group's, in proportion to its parameters' square root, a neuron's
contribution may differ from what the criterion says; leave-one-out decides."""


class Learned(NamedTuple):
    """What the sweep taught."""

    importance: list[NDArray[np.float64]]
    fitted: Fitted
    held_out: HeldOut | None
    num_scored: int
    """Sub-models, the criterion's own choice once per unit of work among them."""
    num_left_out: int
    """Of these, because their utility was no finite number."""


def learn(
    units: list[SweepUnit], results: list[bytes], seen: dict[str, Any], options: dict[str, Any]
) -> Learned:
    """Fit the units' contributions to what the sweep measured.

    A unit's contribution is expected to differ from what the criterion says by an amount that
    grows with the square root of its number of parameters; a neuron's perhaps by less.

    Raises:
        ValueError: the utility was no finite number for more than MAX_LEFT_OUT.
    """
    choice = units[0].choice
    submodels = [list_submodels(unit, options["seed"]) for unit in units]
    masks = np.array([np.concatenate(kept) for group in submodels for kept in group], dtype=float)
    values = [value for result in results for value in json.loads(result)]
    finite = np.array([value is not None for value in values])
    check_finite(finite, options["utility"])
    utilities = np.array(values, dtype=float)[finite]
    groups = np.repeat(np.arange(len(units)), [len(group) for group in submodels])
    drawn = np.array([place > 0 for group in submodels for place in range(len(group))])
    sizes = [len(scores) for scores in choice.importance]
    spread = np.repeat(np.sqrt(seen["parameters_per_unit"]), sizes)
    is_ffn = np.repeat([kind == "ffn" for kind in seen["kinds"]], sizes)
    spreads = [np.where(is_ffn, factor * spread, spread) for factor in FFN_SPREADS]
    prior = np.concatenate(choice.importance)
    masks, groups, drawn = masks[finite], groups[finite], drawn[finite]
    fitted = fit_utilities(masks, utilities, groups, prior, spreads)
    return Learned(
        importance=np.split(fitted.weights, np.cumsum(sizes)[:-1]),
        fitted=fitted,
        held_out=hold_out(masks, utilities, groups, prior, spreads, drawn),
        num_scored=len(finite),
        num_left_out=int((~finite).sum()),
    )


def check_finite(finite: NDArray[np.bool_], utility: str) -> None:
    """Make sure that the utility has judged most of the sub-models."""
    bad = int((~finite).sum())
    if bad > MAX_LEFT_OUT * len(finite):
        raise ValueError(
            f"utility {utility} was NaN or infinite for {bad} of {len(finite)} sub-models, at most "
            f"{MAX_LEFT_OUT:.0%} may be left out; let it return a finite number, or prune less"
        )


def describe_sweep(learned: Learned) -> dict[str, Any]:
    fitted, held_out = learned.fitted, learned.held_out
    described: dict[str, Any] = {
        "prior_scale": fitted.prior_scale,
        "penalty": fitted.penalty,
        "loo_rmse": fitted.loo_rmse,
        "num_scored": learned.num_scored,
        "num_left_out": learned.num_left_out,
    }
    if held_out:
        described |= {
            "predicted": held_out.predicted.tolist(),
            "measured": held_out.measured.tolist(),
            "kendall_tau": held_out.kendall_tau,
            "r_squared": held_out.r_squared,
        }
    return described
