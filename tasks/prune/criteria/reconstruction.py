"""How much of a sublayer's output is lost with a unit when the others may stand in for it."""

import torch

from tasks.prune.loss import measure_loss
from tasks.prune.network_importance import score_group
from tasks.prune.repair.least_squares import eliminate
from tasks.prune.unit_statistics import Calibrated, observed
from tasks.prune.units.families import matrix
from tasks.prune.units.units import Sublayer


def score(calibrated: Calibrated) -> list[torch.Tensor]:
    """Return the importance [num_units] of each unit, per group.

    The increase of the squared error of the sublayer's output when the unit goes, after those
    that are missed less have gone and the rest has been refitted. Units of other kinds than KV
    groups and FFN neurons are scored by their activations (`network_importance`).

    Reference: Hassibi et al. 1993, "Optimal brain surgeon and general network pruning"; Frantar
    and Alistarh 2022, arXiv 2208.11580.
    """
    model = calibrated.model
    sublayers = [group for group in calibrated.groups if isinstance(group, Sublayer)]
    grams = [torch.zeros(()) for _ in sublayers]

    def add(position: int, x: torch.Tensor) -> None:
        x_TC = x.flatten(0, -2)
        grams[position] = grams[position].to(x) + x_TC.T @ x_TC

    with observed(model, sublayers, add):
        measure_loss(model, calibrated.ids_WS)
    scores = []
    of_sublayers = iter(zip(sublayers, grams, strict=True))
    for group in calibrated.groups:
        if not isinstance(group, Sublayer):
            scores.append(score_group(model, group, calibrated.ids_WS))
            continue
        sublayer, gram_CC = next(of_sublayers)
        weight_DC = matrix(model.get_submodule(sublayer.writer)).detach()
        scores.append(eliminate(gram_CC, gram_CC @ weight_DC.T, sublayer.unit_width))
    return scores
