"""Sub-models to try: random, near what the criterion would keep, in pairs that complement.

Every sub-model that is drawn `near` has the final shape. In each sublayer a unit is kept with a
probability that falls with its rank in the criterion's order, through 1/2 where the criterion
would cut. Systematic sampling then keeps exactly the wanted number: the units stand in a row, each
as long as its probability, and those are kept in which a comb of step 1 has a tooth. The comb
moved by half a step gives the pair's second sub-model: at a density of 1/2 the exact complement,
elsewhere the sub-model that shares as little with the first as the probabilities allow.

Reference: Madow 1949, "On the theory of systematic sampling, II", Annals of Mathematical
Statistics 20, for sampling with unequal probabilities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.prune.units.units import Kept

Array = NDArray[np.float64]

SPREAD = (0.05, 0.3)
"""Ranks over which the probability falls from 0.73 to 0.5: a fraction of the units, plus."""
STRATUM = 16
"""Units of neighbouring ranks that are shuffled among themselves, so that each draw keeps its
share of every stratum of the criterion's order."""


def choose_best(importance: list[Array], num_kept: list[int]) -> Kept:
    """Keep the most important units of each sublayer; of equals, the first."""
    return [rank(scores) < number for scores, number in zip(importance, num_kept, strict=True)]


def rank(importance: Array) -> NDArray[np.int64]:
    """Return each unit's place [num_units] in the order of falling importance, from 0."""
    ranks = np.empty(len(importance), dtype=np.int64)
    ranks[np.argsort(-importance, kind="stable")] = np.arange(len(importance))
    return ranks


def keep_probabilities(ranks: NDArray[np.int64], num_kept: int) -> Array:
    """Return probabilities [num_units] that sum to `num_kept`, logistic in the rank."""
    num_units = len(ranks)
    if num_kept == num_units:
        return np.ones(num_units)
    width = SPREAD[0] * num_units + SPREAD[1]
    low, high = -40.0 * num_units, 40.0 * num_units
    for _ in range(80):  # bisect for the rank at which the probability is 1/2
        middle = (low + high) / 2
        probabilities: Array = 1 / (1 + np.exp(np.clip((ranks - middle) / width, -500, 500)))
        low, high = (middle, high) if probabilities.sum() < num_kept else (low, middle)
    return probabilities


def draw_pair(
    ranks: NDArray[np.int64], num_kept: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw two sub-models of one sublayer that share as little as possible, each [num_units]."""
    probabilities = keep_probabilities(ranks, num_kept)
    row = np.lexsort((rng.random(len(ranks)), ranks // STRATUM))
    ends = np.cumsum(probabilities[row])
    ends *= num_kept / ends[-1]
    ends[-1] = num_kept
    start = rng.random()
    first, second = (_teeth(row, ends, (start + shift) % 1) for shift in (0.0, 0.5))
    return first, second


def _teeth(row: NDArray[np.int64], ends: Array, offset: float) -> NDArray[np.bool_]:
    """Keep the unit in whose stretch each of the points offset, offset + 1, ... lies."""
    kept = np.zeros(len(row), dtype=bool)
    points = offset + np.arange(round(ends[-1]))
    kept[row[np.searchsorted(ends, points, side="right")]] = True
    return kept


def draw_independent(
    num_units: int, num_kept: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Keep every unit by itself with probability num_kept / num_units; the complement beside it.

    Where the probability is not 1/2, the pair is antithetic: a unit whose number u keeps it in
    one has 1 - u in the other. At least one unit stays.
    """
    numbers = rng.random(num_units)
    pair = (numbers < num_kept / num_units, 1 - numbers < num_kept / num_units)
    for kept, best in zip(pair, (numbers.argmin(), numbers.argmax()), strict=True):
        kept[best] = True
    return pair


def draw_submodel(
    importance: list[Array], num_kept: list[int], seed: int, number: int, sampling: str
) -> Kept:
    """Return the sub-model of a number; 2n and 2n + 1 are a pair.

    Args:
        sampling: `near` or `independent`, as `PruneOptions.sampling`.
    """
    rng = np.random.default_rng([seed, number // 2])
    return [
        (
            draw_pair(rank(scores), kept, rng)
            if sampling == "near"
            else draw_independent(len(scores), kept, rng)
        )[number % 2]
        for scores, kept in zip(importance, num_kept, strict=True)
    ]
