"""Which widths to keep: the aligned, uniform shape nearest to a sparsity, in stock code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.prune.stock_config import cannot_cut, empty_model, stock_config
from tasks.prune.units import KINDS, NAMES, Sublayer, find_sublayers

MAX_ROUNDING = 0.05
"""Largest difference between the sparsity asked for and the aligned one, unless allowed."""


@dataclass(frozen=True)
class Shape:
    """The same number of units of each kind in every layer."""

    num_layers: int
    num_units: dict[str, int]
    """By kind, in each layer."""
    num_kept: dict[str, int]
    asked: dict[str, float]
    """Sparsity by kind, or under `all`."""
    got: dict[str, float]
    """Fraction removed of the attention and FFN matrices, by kind and under `all`."""
    config: Any
    """Config of the smaller model."""
    saved_as: str
    """Its `model_type`, which is `mistral` where llama's own config refuses the head count."""

    def __str__(self) -> str:
        return f"{describe(self.num_units, self.num_kept)}: {self.got['all']:.1%} removed"


@dataclass(frozen=True)
class Matrices:
    """Parameters of one kind of sublayer, in one layer, and the widths that it may have."""

    num_units: int
    per_unit: int
    fixed: int
    """Parameters that no unit owns."""
    choices: tuple[int, ...]
    """Numbers of units at which the writer's input width is aligned."""

    @property
    def total(self) -> int:
        return self.size(self.num_units)

    def size(self, num_kept: int) -> int:
        return self.fixed + num_kept * self.per_unit

    def nearest(self, size: float) -> int:
        """Return the allowed number of units nearest to a size; of two, the larger."""
        return min(self.choices, key=lambda n: (abs(self.size(n) - size), -n))


def describe(num_units: dict[str, int], num_kept: dict[str, int]) -> str:
    return ", ".join(f"{NAMES[kind]} {num_units[kind]} -> {num_kept[kind]}" for kind in num_kept)


def check_prunable(
    folder: Path, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Shape:
    """Find the shape that a model folder would be cut to; reads its config only.

    Args:
        options: `PruneOptions` as JSON values.
        alignment: Kept FFN widths and o_proj input widths are multiples of it.

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
    sublayers = find_sublayers(model)
    family: str = model.config.model_type
    asked = options["sparsity"]
    if not isinstance(asked, dict):
        asked = {"all": float(asked)}
    present = {sublayer.kind for sublayer in sublayers}
    wanted = KINDS if "all" in asked else tuple(kind for kind in KINDS if asked[kind] > 0)
    if missing := [kind for kind in wanted if kind not in present]:
        raise ValueError(cannot_cut(family, missing, present, "found no such units in its layers"))
    matrices = {
        kind: count_matrices(model, [s for s in sublayers if s.kind == kind], alignment)
        for kind in KINDS
        if kind in present
    }
    num_units = {kind: m.num_units for kind, m in matrices.items()}
    num_kept = choose_widths(matrices, asked)
    got = removed(matrices, num_kept)
    for kind, fraction in asked.items():
        if abs(got.get(kind, 0.0) - fraction) > MAX_ROUNDING and not options["allow_rounding"]:
            raise ValueError(
                f"sparsity {kind}: asked for {fraction:.3f}, the nearest shape "
                f"({describe(num_units, num_kept)}; widths in multiples of {alignment}) removes "
                f"{got[kind]:.3f}; ask for that, choose exports with a smaller group_size, "
                "or say allow_rounding: true"
            )
    smaller = stock_config(model, sublayers, num_kept, trust_remote_code)
    return Shape(
        num_layers=model.config.num_hidden_layers,
        num_units=num_units,
        num_kept=num_kept,
        asked=asked,
        got=got,
        config=smaller,
        saved_as=smaller.model_type,
    )


def count_matrices(model: Any, sublayers: list[Sublayer], alignment: int) -> Matrices:
    """Count one kind of sublayer's weights.

    Raises:
        ValueError: no width is a multiple of the alignment.
    """
    first = sublayers[0]
    paths = [path for path, _ in first.readers] + [first.writer]
    fixed = sum(model.get_submodule(path).weight.numel() for path in first.fixed)
    owned = sum(model.get_submodule(path).weight.numel() for path in paths)
    width = first.unit_width
    choices = tuple(n for n in range(1, first.num_units + 1) if n * width % alignment == 0)
    if not choices:
        raise ValueError(
            f"{NAMES[first.kind]}: no width up to {first.num_units * width} is a multiple of "
            f"{alignment}; choose exports with a smaller group_size"
        )
    return Matrices(first.num_units, owned // first.num_units, fixed, choices)


def choose_widths(matrices: dict[str, Matrices], asked: dict[str, float]) -> dict[str, int]:
    """Return units kept by kind.

    One fraction is asked of attention first, whose steps are coarse; the FFN then brings the sum
    as near to the fraction as its finer steps allow.
    """
    if "all" not in asked:
        return {kind: m.nearest(m.total * (1 - asked[kind])) for kind, m in matrices.items()}
    density = 1 - asked["all"]
    groups, ffn = matrices["kv_groups"], matrices["ffn"]
    num_groups = groups.nearest(groups.total * density)
    left = (groups.total + ffn.total) * density - groups.size(num_groups)
    return {"kv_groups": num_groups, "ffn": ffn.nearest(left)}


def removed(matrices: dict[str, Matrices], num_kept: dict[str, int]) -> dict[str, float]:
    """Return the sparsity by kind and, under `all`, of the kinds together."""
    sizes: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for kind, matrix in matrices.items():
        for name in (kind, "all"):
            sizes[name] += matrix.size(num_kept[kind])
            totals[name] += matrix.total
    return {name: round(1 - sizes[name] / totals[name], 6) for name in totals}
