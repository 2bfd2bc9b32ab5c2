"""Which widths to keep: the aligned, uniform shape nearest to a sparsity, in stock code; or the
one that a budget has been solved for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.prune.budgets.room import Prospect, find_budget_groups, foresee
from tasks.prune.shapes.absent import check_absent
from tasks.prune.shapes.prunable import find_groups, prove_shape
from tasks.prune.shapes.stock_class import empty_model
from tasks.prune.shapes.stock_config import accepts_numbers
from tasks.prune.shapes.widths import Matrices, choose_widths, count_matrices, describe, removed
from tasks.prune.units.units import KINDS, Units

MAX_ROUNDING = 0.05
"""Largest difference between the sparsity asked for and the aligned one, unless allowed."""


@dataclass(frozen=True)
class Shape:
    """The same number of units of each kind in every layer."""

    num_layers: int
    num_units: dict[str, int]
    """By kind, in each layer or in the whole network."""
    num_kept: dict[str, int]
    choices: dict[str, tuple[int, ...]]
    """Numbers of units at which all inputs' widths are aligned, by kind."""
    asked: dict[str, float]
    """Sparsity by kind, or under `all`."""
    got: dict[str, float]
    """Fraction removed of the attention, FFN and expert matrices, by kind and under `all`; of the
    hidden dimensions, the layers and the sublayers."""
    config: Any
    """Config of the smaller model. Where layers are cut, it is that of one choice of them
    (`stock_config.config_of_cut` gives any other's)."""
    saved_as: str
    """Its `model_type`, which is `mistral` where llama's own config refuses the head count."""

    def __str__(self) -> str:
        return f"{describe(self.num_units, self.num_kept)}: {self.got['all']:.1%} removed"


def check_prunable(
    folder: Path, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Shape | Prospect:
    """Find the shape that a model folder would be cut to, or hold it against a budget; reads the
    config only.

    Args:
        options: `PruneOptions` as JSON values.
        alignment: The widths of all inputs that the cut changes are multiples of it.

    Raises:
        ValueError: the architecture has no such units, no width is aligned, the aligned shape is
            further than MAX_ROUNDING from the sparsity asked for, or the budget cannot be met.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = empty_model(config, trust_remote_code)
    if options["budget"]:
        return foresee(model, options, alignment, trust_remote_code)
    return choose_shape(model, options, alignment, trust_remote_code)


def choose_shape(
    model: Any, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Shape:
    """Find the shape as `check_prunable` does, for a model that is there (or on meta).

    With a budget it is the one that `options["num_kept"]` says; before that is known, the whole.
    """
    if options["budget"]:
        return shape_in_budget(model, options, alignment, trust_remote_code)
    asked = options["sparsity"]
    if not isinstance(asked, dict):
        asked = {"all": float(asked)}
    asked = {kind: f for kind, f in asked.items() if f or kind in ("all", "ffn", "kv_groups")}
    wanted = ["kv_groups", "ffn"] if "all" in asked else [kind for kind in asked if asked[kind]]
    groups = find_groups(model, wanted, trust_remote_code)
    if "sublayers" in wanted:
        check_absent(model, groups, options, trust_remote_code)
    matrices = count_kinds(model, groups, alignment)
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
    return make_shape(model, groups, matrices, num_kept, asked, trust_remote_code)


def shape_in_budget(
    model: Any, options: dict[str, Any], alignment: int, trust_remote_code: bool
) -> Shape:
    num_kept = options.get("num_kept")
    if num_kept:
        groups = find_groups(model, list(num_kept), trust_remote_code)
    else:
        groups, _ = find_budget_groups(model, options["budget"], trust_remote_code)
    matrices = count_kinds(model, groups, alignment)
    kept = {kind: m.num_units for kind, m in matrices.items()} | (num_kept or {})
    return make_shape(model, groups, matrices, kept, {}, trust_remote_code)


def make_shape(
    model: Any,
    groups: list[Units],
    matrices: dict[str, Matrices],
    num_kept: dict[str, int],
    asked: dict[str, float],
    trust_remote_code: bool,
) -> Shape:
    """Put a shape together, once stock code has been found to build it; of cut sublayers, only
    what they were cut from."""
    in_stock = num_kept | {g.kind: g.num_units for g in groups if g.kind == "sublayers"}
    config = prove_shape(model, groups, in_stock, trust_remote_code)
    return Shape(
        num_layers=model.config.num_hidden_layers,
        num_units={kind: m.num_units for kind, m in matrices.items()},
        num_kept=num_kept,
        choices={kind: m.choices for kind, m in matrices.items()},
        asked=asked,
        got=removed(matrices, num_kept),
        config=config,
        saved_as=config.model_type,
    )


def count_kinds(model: Any, groups: list[Units], alignment: int) -> dict[str, Matrices]:
    return {
        kind: count_matrices(model, [g for g in groups if g.kind == kind], alignment)
        for kind in KINDS
        if any(g.kind == kind for g in groups)
    }


def fit_hidden(
    model: Any, groups: list[Units], num_kept: dict[str, int], choices: tuple[int, ...]
) -> int:
    """Return the nearest hidden size that the family's config takes: some want a multiple of the
    number of heads."""
    wanted = num_kept["hidden"]
    for size in sorted(choices, key=lambda n: abs(n - wanted)):
        if accepts_numbers(model.config, groups, num_kept | {"hidden": size}):
            return size
    return wanted
