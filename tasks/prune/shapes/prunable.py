"""Which kinds of unit a model has, and of which of them stock code can hold fewer."""

from __future__ import annotations

from typing import Any

from tasks.prune.shapes.stock_config import cannot_cut, stock_config
from tasks.prune.units.groups import find_units
from tasks.prune.units.slicing import check_sharing
from tasks.prune.units.units import KINDS, Units

SHAPES = KINDS[: KINDS.index("sublayers")]
"""The kinds of which a stock architecture can have fewer."""


def find_groups(model: Any, wanted: list[str], trust_remote_code: bool) -> list[Units]:
    """Return the units of all kinds of matrices that there are, and of the kinds that are wanted.

    Raises:
        ValueError: there are none of a kind that is wanted.
    """
    groups = []
    missing, reasons = [], set()
    for kind in KINDS:
        try:
            if kind in ("kv_groups", "ffn", "experts") or kind in wanted:
                groups += find_units(model, [kind], trust_remote_code)
        except ValueError as error:
            if kind in wanted:
                missing.append(kind)
                reasons.add(str(error))
    if missing:
        prunable = list_prunable(model, trust_remote_code)
        family = model.config.model_type
        raise ValueError(cannot_cut(family, missing, prunable, "; ".join(sorted(reasons))))
    return groups


def prove_shape(
    model: Any, groups: list[Units], num_kept: dict[str, int], trust_remote_code: bool
) -> Any:
    """Return the smaller model's config.

    Raises:
        ValueError: stock code does not build that shape; says which kinds are to blame, and which
            are not.
    """
    cut = {g.kind: num_kept[g.kind] for g in groups if num_kept[g.kind] < g.num_units}
    changed = [group for group in groups if group.kind in cut]
    check_sharing(model, changed)
    try:
        return stock_config(model, changed, cut, trust_remote_code)
    except ValueError as error:
        reason = str(error)
    refused = []
    for kind in cut:
        try:
            alone = [group for group in groups if group.kind == kind]
            stock_config(model, alone, {kind: cut[kind]}, trust_remote_code)
        except ValueError:
            refused.append(kind)
    prunable = list_prunable(model, trust_remote_code)
    family = model.config.model_type
    raise ValueError(cannot_cut(family, refused or list(cut), prunable, reason))


def list_prunable(model: Any, trust_remote_code: bool) -> list[str]:
    """Return the kinds of which a stock architecture with half the units exists."""
    found = []
    for kind in SHAPES:
        try:
            groups = find_units(model, [kind], trust_remote_code)
            half = max(groups[0].num_units // 2, groups[0].least)
            if half < groups[0].num_units:
                stock_config(model, groups, {kind: half}, trust_remote_code)
                found.append(kind)
        except ValueError:
            continue
    return found
