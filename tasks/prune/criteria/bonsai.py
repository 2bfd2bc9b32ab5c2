"""The published Bonsai recipe, as a baseline: rounds of multiplied masks and a regression each.

Nothing of ours is in it: perplexity as utility, the whole model for each mask, no repair, its own
regression (`bonsai_regression`).
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tasks.prune.bonsai_regression import fit_published
from tasks.prune.loss import measure_loss
from tasks.prune.unit_statistics import Calibrated, observed, read_written
from tasks.prune.units.masking import masked
from tasks.prune.units.units import Kept, Sublayer

Array = NDArray[np.float64]
WORST_PERPLEXITY = 1e8


class Odds(NamedTuple):
    """What a round may do to one sublayer, its units in the order of falling prior."""

    open: NDArray[np.int64]
    """Units that a mask may switch off, and the round may remove; others stay on."""
    probabilities: Array
    """[num_open]: of being switched off."""
    num_off: int


def score(
    calibrated: Calibrated,
    *,
    masks_per_round: Annotated[int, Field(ge=10, multiple_of=2)] = 200,
    windows_per_mask: Annotated[int, Field(gt=0)] = 32,
    removed_per_round: Annotated[float, Field(gt=0, le=0.5)] = 0.05,
    seed: int = 0,
) -> list[torch.Tensor]:
    """Return when each unit would be removed, the later the higher, [num_units] per sublayer.

    Between two units of a round the regression's coefficients decide, between those that stay to
    the end the prior. Rounds end at the shape that is asked for, each sublayer at the same pace;
    the published code instead ranks the units of all sublayers together, which gives no uniform
    shape.

    Reference: Dery et al. 2024, arXiv 2402.05406, algorithm 1; their code's `main.py`.
    """
    *_, last = refine(calibrated, masks_per_round, windows_per_mask, removed_per_round, seed)
    return last


def refine(
    calibrated: Calibrated,
    masks_per_round: int,
    windows_per_mask: int,
    removed_per_round: float,
    seed: int,
) -> Iterator[list[torch.Tensor]]:
    """Yield the importance after each round; before the first one, it is the prior alone."""
    model, sublayers, ids = calibrated.model, calibrated.sublayers, calibrated.ids_WS
    widths = [sublayer.num_units for sublayer in sublayers]
    density = min(kept / width for kept, width in zip(calibrated.num_kept, widths, strict=True))
    num_rounds = max(math.ceil((1 - density) / removed_per_round - 1e-9), 1)
    kept: Kept = [np.ones(width, dtype=bool) for width in widths]
    importance = [np.zeros(width) for width in widths]
    prior = measure_prior(model, sublayers, kept, ids[:windows_per_mask])
    yield finish(importance, kept, prior, 0)
    for number in range(1, num_rounds + 1):
        rng = np.random.default_rng([seed, number])
        quotas = [
            round(width - (width - final) * number / num_rounds)
            for width, final in zip(widths, calibrated.num_kept, strict=True)
        ]
        odds = [
            weigh(scores, alive, removed_per_round, int(alive.sum()) - quota)
            for scores, alive, quota in zip(prior, kept, quotas, strict=True)
        ]
        chosen = torch.from_numpy(rng.permutation(len(ids))[:windows_per_mask])
        coefficients = learn_round(model, sublayers, kept, odds, ids[chosen], masks_per_round, rng)
        for position, (sublayer_odds, weights) in enumerate(zip(odds, coefficients, strict=True)):
            alive = kept[position]
            # Of equal coefficients, the one with the lower prior goes first.
            ascending = sublayer_odds.open[::-1][np.argsort(weights[::-1], kind="stable")]
            removed = ascending[: int(alive.sum()) - quotas[position]]
            alive[removed] = False
            importance[position][removed] = number - 1 + np.arange(len(removed)) / len(alive)
        prior = measure_prior(model, sublayers, kept, ids[:windows_per_mask])
        yield finish(importance, kept, prior, num_rounds)


def finish(
    importance: list[Array], kept: Kept, prior: list[Array], num_rounds: int
) -> list[torch.Tensor]:
    """Rank the units that are left by the prior, above all that have been removed."""
    return [
        torch.from_numpy(np.where(alive, num_rounds + scores / scores.max(), removed))
        for removed, alive, scores in zip(importance, kept, prior, strict=True)
    ]


def weigh(prior: Array, alive: NDArray[np.bool_], fraction: float, num_removed: int) -> Odds:
    """Open the lowest twice `fraction` of a sublayer's units by the prior, as is published."""
    order = np.argsort(-prior, kind="stable")
    order = order[alive[order]]
    num_open = max(len(order) - int(len(order) * (1 - 2 * fraction)), num_removed)
    opened = order[len(order) - num_open :]
    slack = prior[order].max() - prior[opened]
    num_off = min(int(fraction * len(order)) + 1, int((slack > 0).sum()))
    return Odds(opened, slack / slack.sum() if num_off else slack, num_off)


def learn_round(
    model: Any,
    sublayers: list[Sublayer],
    kept: Kept,
    odds: list[Odds],
    ids_WS: torch.Tensor,
    num_masks: int,
    rng: np.random.Generator,
) -> list[Array]:
    """Return the coefficients [num_open] per sublayer, of one regression over all sublayers."""
    rows: list[Array] = []
    utilities: list[float] = []
    for _ in range(num_masks // 2):
        off = [rng.choice(len(o.open), o.num_off, False, o.probabilities) for o in odds]
        first = [
            ~np.isin(np.arange(len(o.open)), drawn) for o, drawn in zip(odds, off, strict=True)
        ]
        for opened in (first, [~mask for mask in first]):
            submodel = [alive.copy() for alive in kept]
            for mask, sublayer_odds, on in zip(submodel, odds, opened, strict=True):
                mask[sublayer_odds.open] = on
            with masked(model, sublayers, submodel):
                loss = measure_loss(model, ids_WS)
            rows.append(np.concatenate(opened).astype(float))
            utilities.append(-min(math.exp(min(loss, 50.0)), WORST_PERPLEXITY))
    weights = fit_published(np.array(rows), np.array(utilities), rng)
    return np.split(weights, np.cumsum([len(o.open) for o in odds])[:-1])


def measure_prior(
    model: Any, sublayers: list[Sublayer], kept: Kept, ids_WS: torch.Tensor
) -> list[Array]:
    """Return mean abs(W_ij) * rms(X_j) over each unit's columns, [num_units] per sublayer.

    The root mean square is each window's own, and the mean over windows is taken of it.
    """
    totals = [torch.zeros(()) for _ in sublayers]

    def add(position: int, x: torch.Tensor) -> None:
        rms_C = x.square().mean(-2).sqrt().sum(0)
        totals[position] = totals[position].to(rms_C) + rms_C

    with masked(model, sublayers, kept), observed(model, sublayers, add):
        measure_loss(model, ids_WS)
    prior = []
    for sublayer, total in zip(sublayers, totals, strict=True):
        size_Uw = read_written(model, sublayer).abs().mean(-1)
        units_U = (size_Uw * total.view_as(size_Uw) / len(ids_WS)).mean(1)
        prior.append(units_U.double().cpu().numpy())
    return prior
