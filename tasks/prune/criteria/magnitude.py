"""The size of a unit's weights alone; a baseline that needs no calibration text."""

import torch

from tasks.prune.unit_statistics import UnitStatistics


def score(statistics: UnitStatistics) -> torch.Tensor:
    """Return the L2 norm [num_units] of all weights that a unit owns."""
    readers = statistics.readers_UrD.square().sum((1, 2))
    return (readers + statistics.writer_UwD.square().sum((1, 2))).sqrt()
