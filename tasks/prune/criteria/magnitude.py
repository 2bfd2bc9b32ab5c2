"""The size of a unit's weights alone; a baseline that looks at no text."""

from typing import Literal

import torch

from tasks.models.streaming import read_weight
from tasks.prune.unit_statistics import Calibrated, owned_parameters, sum_by_unit


def score(
    calibrated: Calibrated, *, scope: Literal["global", "layer"] = "global"
) -> list[torch.Tensor]:
    """Return the L2 norm [num_units] of all weights that a unit owns, per group.

    Args:
        scope: `layer` divides by the group's mean, so that units compare with their neighbours
            only; `global` leaves layers with large weights ahead of others. The two rank the
            units of one sublayer alike.
    """
    model = calibrated.model

    def squares(name: str) -> torch.Tensor:
        return read_weight(model.get_parameter(name)).square()

    norms = [
        sum_by_unit(group, owned_parameters(model, group), squares).sqrt()
        for group in calibrated.groups
    ]
    return norms if scope == "global" else [norm / norm.mean() for norm in norms]
