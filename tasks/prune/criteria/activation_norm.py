"""The size of a unit's weights times the size of what drives them."""

import torch

from tasks.prune.unit_statistics import UnitStatistics


def score(statistics: UnitStatistics) -> torch.Tensor:
    """Return the importance [num_units] of each unit of a sublayer.

    Wanda's abs(W_ij) * norm(X_j), summed over the writer's columns that belong to the unit.

    Reference: Sun et al. 2023, arXiv 2306.11695, equation 1.
    """
    return (statistics.writer_UwD.abs().sum(-1) * statistics.input_norm_Uw).sum(-1)
