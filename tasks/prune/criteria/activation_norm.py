"""The size of a unit's weights times the size of what drives them."""

import torch

from tasks.prune.unit_statistics import Calibrated, describe_units


def score(calibrated: Calibrated) -> list[torch.Tensor]:
    """Return the importance [num_units] of each unit, per sublayer.

    Wanda's abs(W_ij) * norm(X_j), summed over the writer's columns that belong to the unit.

    Reference: Sun et al. 2023, arXiv 2306.11695, equation 1.
    """
    return [
        (units.writer_UwD.abs().sum(-1) * units.input_norm_Uw).sum(-1)
        for units in describe_units(calibrated)
    ]
