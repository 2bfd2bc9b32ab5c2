"""Which units to keep: what the criterion says, and what a sweep makes of that."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.prune.bench import Work, build_bench
from tasks.prune.sweep.learning import Learned, learn
from tasks.prune.sweep.sweep import Choice, cut_units, score_unit
from tasks.prune.units.units import Kept

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


class Opinions(NamedTuple):
    """Choices of the same shape, by whose they are; the criterion's first."""

    choices: dict[str, Choice]
    learned: Learned | None


def ask(
    space: StageSpace, work: Work, choice: Choice, seen: dict[str, Any], group: str
) -> Opinions:
    """Return the criterion's choice and, with `method: perturbation`, what a sweep makes of it.

    Args:
        seen: The answer of the look.
        group: Of the sweep's units of work.
    """
    if work.options["method"] != "perturbation":
        return Opinions({"criterion": choice}, None)
    units = cut_units(choice, work.options)
    results = space.compute_units(score_unit, units, partial(build_bench, work), group=group)
    learned = learn(units, results, seen, work.options)
    corrected = choice._replace(importance=sink(learned.importance, choice.left))
    return Opinions({"criterion": choice, "sweep": corrected}, learned)


def sink(importance: list[NDArray[np.float64]], left: Kept | None) -> list[NDArray[np.float64]]:
    """Value units that an earlier round has cut as the least of those that are left."""
    if left is None:
        return importance
    return [
        np.where(mask, scores, scores[mask].min())
        for scores, mask in zip(importance, left, strict=True)
    ]


def list_distinct(choices: dict[str, Choice]) -> dict[str, Kept]:
    """Return the units that each choice keeps; of two that agree in a row, the later."""
    found: dict[str, Kept] = {}
    for name, choice in choices.items():
        kept, last = choice.best(), next(reversed(found), None)
        if last and all(map(np.array_equal, found[last], kept)):
            del found[last]
        found[name] = kept
    return found


def rank_cut(measured: dict[str, Any]) -> tuple[float, float]:
    """Order cuts by utility; those that have none come last, by their loss."""
    utility = measured["utility"]
    return -math.inf if utility is None else utility, -measured["nats_per_token"]
