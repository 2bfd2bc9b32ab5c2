"""How much of a sublayer's output is lost with a unit when the others may stand in for it."""

from collections.abc import Iterator
from typing import Any

import torch

from tasks.prune.loss import measure_loss
from tasks.prune.network_importance import score_group
from tasks.prune.repair.least_squares import eliminate
from tasks.prune.unit_statistics import Calibrated, observed, read_written
from tasks.prune.units.units import Sublayer

GRAM_BYTES = 2**32
"""Sums over tokens that are held at a time; where all need more, the text is run once more for
every so many. Seven layers of a 7B Llama have room."""


def score(calibrated: Calibrated) -> list[torch.Tensor]:
    """Return the importance [num_units] of each unit, per group.

    The increase of the squared error of the sublayer's output when the unit goes, after those
    that are missed less have gone and the rest has been refitted. Units of other kinds than KV
    groups and FFN neurons are scored by their activations (`network_importance`).

    Reference: Hassibi et al. 1993, "Optimal brain surgeon and general network pruning"; Frantar
    and Alistarh 2022, arXiv 2208.11580.
    """
    model, ids = calibrated.model, calibrated.ids_WS
    sublayers = [group for group in calibrated.groups if isinstance(group, Sublayer)]
    of_sublayers = (
        importance for part in parts(sublayers) for importance in score_part(model, part, ids)
    )
    return [
        next(of_sublayers) if isinstance(group, Sublayer) else score_group(model, group, ids)
        for group in calibrated.groups
    ]


def parts(sublayers: list[Sublayer]) -> Iterator[list[Sublayer]]:
    """Yield as many sublayers at a time as GRAM_BYTES has room for, one at least."""
    part: list[Sublayer] = []
    num_bytes = 0
    for sublayer in sublayers:
        size = 4 * (sublayer.num_units * sublayer.unit_width) ** 2
        if part and num_bytes + size > GRAM_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(sublayer)
        num_bytes += size
    if part:
        yield part


def score_part(model: Any, sublayers: list[Sublayer], ids_WS: torch.Tensor) -> list[torch.Tensor]:
    grams = [torch.zeros(()) for _ in sublayers]

    def add(position: int, x: torch.Tensor) -> None:
        x_TC = x.flatten(0, -2)
        grams[position] = grams[position].to(x) + x_TC.T @ x_TC

    with observed(model, sublayers, add):
        measure_loss(model, ids_WS)
    scores = []
    for sublayer, gram_CC in zip(sublayers, grams, strict=True):
        weight_UwD = read_written(model, sublayer)
        cross_CD = gram_CC @ weight_UwD.flatten(0, 1)
        scores.append(eliminate(gram_CC, cross_CD, sublayer.unit_width))
    return scores
