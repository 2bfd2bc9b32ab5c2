# ruff: noqa: A005 - a criterion has the name of its file, and this is the baseline's usual one
"""Random importance: what any other criterion has to beat."""

import hashlib

import torch

from tasks.prune.unit_statistics import UnitStatistics


def score(statistics: UnitStatistics, *, seed: int = 0) -> torch.Tensor:
    """Return uniform numbers [num_units], each drawn from the seed and the unit's own weights.

    So a unit has the same number wherever it stands among the others.
    """
    writer = statistics.writer_UwD.float().cpu().contiguous()
    digests = [hashlib.sha256(b"%d " % seed + unit.numpy().tobytes()) for unit in writer]
    drawn = [int.from_bytes(digest.digest()[:6], "big") / 2**48 for digest in digests]
    return torch.tensor(drawn, dtype=torch.float64)
