# ruff: noqa: A005 - a criterion has the name of its file, and this is the baseline's usual one
"""Random importance: what any other criterion has to beat."""

import hashlib
from typing import Any

import torch

from tasks.models.streaming import read_weight
from tasks.prune.unit_statistics import Calibrated
from tasks.prune.units.units import Sublayer, Units


def score(calibrated: Calibrated, *, seed: int = 0) -> list[torch.Tensor]:
    """Return uniform numbers [num_units], each drawn from the seed and the unit's own weights.

    So a unit has the same number wherever it stands among the others.
    """
    return [draw(calibrated.model, group, seed) for group in calibrated.groups]


def draw(model: Any, group: Units, seed: int) -> torch.Tensor:
    if group.slices:
        part = group.slices[-1]
        rows = read_weight(model.get_parameter(part.name)).movedim(part.dim, 0)
        rows = rows[part.start :][: group.num_units * part.width]
        owned = list(rows.reshape(group.num_units, -1))
    else:
        assert not isinstance(group, Sublayer)
        # Whole modules, each by its largest matrix.
        modules = [list(model.get_submodule(path).parameters()) for path in group.paths]
        owned = [read_weight(max(parameters, key=torch.numel)) for parameters in modules]
    digests = [hashlib.sha256(b"%d " % seed + as_bytes(weights)) for weights in owned]
    drawn = [int.from_bytes(digest.digest()[:6], "big") / 2**48 for digest in digests]
    return torch.tensor(drawn, dtype=torch.float64)


def as_bytes(weights: torch.Tensor) -> bytes:
    return weights.float().cpu().contiguous().numpy().tobytes()
