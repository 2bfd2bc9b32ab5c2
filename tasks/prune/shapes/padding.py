"""Sublayers of different widths in stock code: the narrower ones are filled up with zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tasks.prune.shapes.allocation import PER_SUBLAYER
from tasks.prune.units.units import Kept, Sublayer, Units


def widen(groups: Sequence[Units], kept: Kept) -> Kept:
    """Return the units kept, and in each sublayer as many others as the widest one has more; of
    sublayers, all."""
    widest = {
        kind: max(1, *(int(m.sum()) for g, m in zip(groups, kept, strict=True) if g.kind == kind))
        for kind in {group.kind for group in groups} & set(PER_SUBLAYER)
    }
    wide = []
    for group, mask in zip(groups, kept, strict=True):
        if group.kind == "sublayers":
            wide.append(np.ones_like(mask))
            continue
        others = np.flatnonzero(~mask)[: widest.get(group.kind, 0) - int(mask.sum())]
        wide.append(mask | np.isin(np.arange(len(mask)), others))
    return wide


def zero_units(
    model: Any,
    groups: Sequence[Units],
    zeroed: Kept,
    changed: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the changed tensors with all that some units own set to zero, so that they add
    nothing to the stream.

    Args:
        zeroed: Per group, which units.
        changed: Tensors that stand in place of the model's own, by name.
    """
    state: dict[str, torch.Tensor] = {**model.state_dict(), **changed}
    found = dict(changed)
    for group, mask in zip(groups, zeroed, strict=True):
        for part in group.slices if mask.any() else ():
            if part.name not in found or found[part.name] is changed.get(part.name):
                found[part.name] = state[part.name].clone()
            rows = found[part.name].movedim(part.dim, 0)
            for unit in np.flatnonzero(mask):
                first = part.start + int(unit) * part.width
                rows[first : first + part.width] = 0
    return found


def zero_biases(
    model: Any, groups: Sequence[Units], kept: Kept, changed: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the changed tensors with nothing in the output biases of sublayers without units."""
    state: dict[str, torch.Tensor] = {**model.state_dict(), **changed}
    found = dict(changed)
    for group, mask in zip(groups, kept, strict=True):
        name = f"{group.writer}.bias" if isinstance(group, Sublayer) else ""
        if name in state and not mask.any():
            found[name] = torch.zeros_like(state[name])
    return found
