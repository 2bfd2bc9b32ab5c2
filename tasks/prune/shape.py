"""Which widths to keep: the aligned, uniform shape nearest to a sparsity, in stock code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.prune.groups import find_units
from tasks.prune.slicing import check_sharing
from tasks.prune.stock_class import empty_model
from tasks.prune.stock_config import cannot_cut, smaller_config, stock_config
from tasks.prune.units import KINDS, NAMES, Units
from tasks.prune.widths import choose_widths, count_matrices, removed

SHAPES = KINDS[: KINDS.index("sublayers")]
"""The kinds of which a stock architecture can have fewer."""

MAX_ROUNDING = 0.05
"""Largest difference between the sparsity asked for and the aligned one, unless allowed."""


@dataclass(frozen=True)
class Shape:
    """The same number of units of each kind in every layer."""

    num_layers: int
    num_units: dict[str, int]
    """By kind, in each layer or in the whole network."""
    num_kept: dict[str, int]
    asked: dict[str, float]
    """Sparsity by kind, or under `all`."""
    got: dict[str, float]
    """Fraction removed of the attention, FFN and expert matrices, by kind and under `all`; of the
    hidden dimensions and of the layers."""
    config: Any
    """Config of the smaller model. Where layers are cut, it is that of one choice of them
    (`stock_config.config_of_cut` gives any other's)."""
    saved_as: str
    """Its `model_type`, which is `mistral` where llama's own config refuses the head count."""

    def __str__(self) -> str:
        return f"{describe(self.num_units, self.num_kept)}: {self.got['all']:.1%} removed"


def describe(num_units: dict[str, int], num_kept: dict[str, int]) -> str:
    return ", ".join(f"{NAMES[kind]} {num_units[kind]} -> {num_kept[kind]}" for kind in num_kept)


def check_prunable(
    folder: Path, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Shape:
    """Find the shape that a model folder would be cut to; reads its config only.

    Args:
        options: `PruneOptions` as JSON values.
        alignment: The widths of all inputs that the cut changes are multiples of it.

    Raises:
        ValueError: the architecture has no such units, no width is aligned, or the aligned shape
            is further than MAX_ROUNDING from the sparsity asked for.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = empty_model(config, trust_remote_code)
    return choose_shape(model, options, alignment, trust_remote_code)


def choose_shape(
    model: Any, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Shape:
    """Find the shape as `check_prunable` does, for a model that is there (or on meta)."""
    asked = options["sparsity"]
    if not isinstance(asked, dict):
        asked = {"all": float(asked)}
    asked = {kind: f for kind, f in asked.items() if f or kind in ("all", "ffn", "kv_groups")}
    wanted = ["kv_groups", "ffn"] if "all" in asked else [kind for kind in asked if asked[kind]]
    groups = find_groups(model, wanted, trust_remote_code)
    matrices = {
        kind: count_matrices(model, [g for g in groups if g.kind == kind], alignment)
        for kind in SHAPES
        if any(g.kind == kind for g in groups)
    }
    num_units = {kind: m.num_units for kind, m in matrices.items()}
    num_kept = choose_widths(matrices, asked)
    if "hidden" in num_kept:
        num_kept["hidden"] = fit_hidden(model, groups, num_kept, matrices["hidden"].choices)
    got = removed(matrices, num_kept)
    for kind, fraction in asked.items():
        if abs(got.get(kind, 0.0) - fraction) > MAX_ROUNDING and not options["allow_rounding"]:
            raise ValueError(
                f"sparsity {kind}: asked for {fraction:.3f}, the nearest shape "
                f"({describe(num_units, num_kept)}; widths in multiples of {alignment}) removes "
                f"{got[kind]:.3f}; ask for that, choose exports with a smaller group_size, "
                "or say allow_rounding: true"
            )
    smaller = prove_shape(model, groups, num_kept, trust_remote_code)
    return Shape(
        num_layers=model.config.num_hidden_layers,
        num_units=num_units,
        num_kept=num_kept,
        asked=asked,
        got=got,
        config=smaller,
        saved_as=smaller.model_type,
    )


def fit_hidden(
    model: Any, groups: list[Units], num_kept: dict[str, int], choices: tuple[int, ...]
) -> int:
    """Return the nearest hidden size that the family's config takes: some want a multiple of the
    number of heads."""
    wanted = num_kept["hidden"]
    cut = {kind: number for kind, number in num_kept.items() if kind != "layers"}
    for size in sorted(choices, key=lambda n: abs(n - wanted)):
        try:
            smaller_config(model.config, groups, cut | {"hidden": size})
        except ValueError:
            continue
        return size
    return wanted


def find_groups(model: Any, wanted: list[str], trust_remote_code: bool) -> list[Units]:
    """Return the units of all kinds of matrices that there are, and of the kinds that are wanted.

    Raises:
        ValueError: there are none of a kind that is wanted.
    """
    groups = []
    missing, reasons = [], set()
    for kind in SHAPES:
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
