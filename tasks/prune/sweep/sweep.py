"""The sweep: score sub-models by forward passes, unit of work by unit of work.

A unit of work scores some pairs of sub-models, and before them the criterion's own choice, all on
the same windows: what makes a window hard then cancels, and how far the criterion's choice
stands above its neighbours tells how much the criterion is worth.
"""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.prune.bench import Bench
from tasks.prune.loss import BATCH_WINDOWS, predict
from tasks.prune.repair.repair import repair_submodels
from tasks.prune.sweep.sampling import choose_best, draw_submodel
from tasks.prune.units.layers import silence
from tasks.prune.units.masking import masked, masked_side_by_side
from tasks.prune.units.units import Kept
from tasks.prune.utility import Utility, load_utility, measure_utility

Array = NDArray[np.int64]

FIT_PER_SCORED = 2
"""Windows that a sub-model is repaired on, per window that it is scored on."""
SUBMODELS_PER_PASS = 3
"""Repaired side by side, so that they share the dense model's pass; memory grows with it."""


class Choice(NamedTuple):
    """The criterion's opinion, and how many units of each group stay."""

    importance: list[NDArray[np.float64]]
    num_kept: list[int]
    fixed: list[bool]
    """Groups in which the criterion decides alone: all sub-models have its choice."""
    sampling: str = "near"
    """`PruneOptions.sampling`."""
    left: Kept | None = None
    """Units that no earlier round has cut; None: all."""

    def best(self) -> Kept:
        return self._widen(choose_best(self._scores(), self.num_kept))

    def draw(self, seed: int, number: int) -> Kept:
        drawn = draw_submodel(self._scores(), self.num_kept, seed, number, self.sampling)
        pairs = zip(self.fixed, self.best(), self._widen(drawn), strict=True)
        return [best if fixed else other for fixed, best, other in pairs]

    def _scores(self) -> list[NDArray[np.float64]]:
        """Return the importance of the units that are left."""
        if self.left is None:
            return self.importance
        return [scores[left] for scores, left in zip(self.importance, self.left, strict=True)]

    def _widen(self, kept: Kept) -> Kept:
        """Say of all units what is said of those that are left."""
        if self.left is None:
            return kept
        wide = [left.copy() for left in self.left]
        for mask, left, chosen in zip(wide, self.left, kept, strict=True):
            mask[left] = chosen
        return wide


class SweepUnit(NamedTuple):
    """One unit of work; its number fixes the windows."""

    number: int
    submodels: tuple[int, ...]
    choice: Choice


def cut_units(choice: Choice, options: dict[str, Any]) -> list[SweepUnit]:
    """Divide the sub-models among units of work."""
    size, total = options["submodels_per_unit"], options["num_submodels"]
    return [
        SweepUnit(number, tuple(range(first, min(first + size, total))), choice)
        for number, first in enumerate(range(0, total, size))
    ]


def list_submodels(unit: SweepUnit, seed: int) -> list[Kept]:
    """Return the sub-models of a unit of work, the criterion's choice first."""
    return [unit.choice.best(), *(unit.choice.draw(seed, n) for n in unit.submodels)]


def check_windows(options: dict[str, Any]) -> None:
    """Make sure that there are windows to score sub-models on, and others to repair them on.

    Raises:
        ValueError: there are not.
    """
    scored, total = options["windows_per_submodel"], options["num_windows"]
    if scored + int(options["repair"]) > total:
        most = total - int(options["repair"])
        raise ValueError(
            f"windows_per_submodel is {scored}, calibration.num_windows {total}; sub-models are "
            f"repaired on other windows than they are scored on: ask for at most {most}"
        )


def choose_windows(unit: int, total: int, num_scored: int, seed: int) -> tuple[Array, Array]:
    """Choose a unit of work's windows: those to score on, and FIT_PER_SCORED times as many others.

    The calibration text is shuffled and dealt out: units that follow each other score on different
    windows (shards) until the text is used up, and it is shuffled again.
    """
    num_shards = total // num_scored
    pack, place = divmod(unit, num_shards)
    dealt = np.random.default_rng([seed, pack, 1]).permutation(total)
    begin, end = place * num_scored, (place + 1) * num_scored
    others = np.concatenate([dealt[:begin], dealt[end:]])
    to_fit = np.random.default_rng([seed, unit, 2]).permutation(others)
    return dealt[begin:end], to_fit[: num_scored * FIT_PER_SCORED]


def score_unit(bench: Bench, unit: SweepUnit) -> bytes:
    """Score a unit's sub-models.

    Returns:
        JSON, their utilities in order; null where the utility is no finite number.
    """
    options = bench.work.options
    utility = load_utility(options["utility"])
    kinds = [group.kind for group in bench.groups]
    submodels = [silence(kinds, kept) for kept in list_submodels(unit, options["seed"])]
    windows = choose_windows(
        unit.number, len(bench.ids_WS), options["windows_per_submodel"], options["seed"]
    )
    score_ids, fit_ids = (bench.ids_WS[torch.from_numpy(chosen)] for chosen in windows)
    dense = None
    if utility.needs_dense:
        dense = torch.cat([logits for _, logits in predict(bench.model, score_ids)])
    utilities: list[float] = []
    if options["repair"]:
        for first in range(0, len(submodels), SUBMODELS_PER_PASS):
            cuts = submodels[first : first + SUBMODELS_PER_PASS]
            _, scores = repair_submodels(
                bench.model,
                bench.groups,
                bench.anatomy,
                cuts,
                fit_ids,
                score_ids,
                keep_weights=False,
                score=partial(utility.score, dense_NSV=dense),
            )
            utilities += scores
    else:
        utilities = score_masked(bench, submodels, score_ids, utility, dense)
    return json.dumps([value if math.isfinite(value) else None for value in utilities]).encode()


def score_masked(
    bench: Bench,
    submodels: list[Kept],
    score_ids_NS: torch.Tensor,
    utility: Utility,
    dense_NSV: torch.Tensor | None,
) -> list[float]:
    """Score sub-models as they are, several in a pass where their windows are few."""
    num_windows = len(score_ids_NS)
    together = BATCH_WINDOWS // num_windows
    utilities: list[float] = []
    if together < 2 or len(bench.sublayers) < len(bench.groups):
        for kept in submodels:
            batches = repeat(None) if dense_NSV is None else torch.split(dense_NSV, BATCH_WINDOWS)
            with masked(bench.model, bench.groups, kept):
                utilities.append(measure_utility(bench.model, score_ids_NS, utility, batches))
        return utilities
    for first in range(0, len(submodels), together):
        some = submodels[first : first + together]
        with masked_side_by_side(bench.model, bench.sublayers, some, num_windows):
            ((_, logits),) = predict(bench.model, score_ids_NS.repeat(len(some), 1))
        split = torch.split(logits, num_windows)
        utilities += [utility.score(own, score_ids_NS, dense_NSV) for own in split]
    return utilities
