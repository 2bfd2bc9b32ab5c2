"""How large each kind of unit is, and how many of each to keep for a sparsity."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tasks.prune.units.units import NAMES, Sublayer, Units, parameters_per_unit


@dataclass(frozen=True)
class Matrices:
    """Parameters of one kind of unit, in one layer, and the numbers of units that may stay; of
    hidden dimensions and layers, just their number."""

    num_units: int
    per_unit: int
    fixed: int
    """Parameters that no unit owns."""
    choices: tuple[int, ...]
    """Numbers of units at which all inputs' widths are aligned."""

    @property
    def total(self) -> int:
        return self.size(self.num_units)

    def size(self, num_kept: int) -> int:
        return self.fixed + num_kept * self.per_unit

    def nearest(self, size: float) -> int:
        """Return the allowed number of units nearest to a size; of two, the larger."""
        return min(self.choices, key=lambda n: (abs(self.size(n) - size), -n))


def count_matrices(model: Any, groups: list[Units], alignment: int) -> Matrices:
    """Count one kind of unit's weights.

    Raises:
        ValueError: no width is a multiple of the alignment.
    """
    first = groups[0]
    fixed, owned, width = 0, first.num_units, 1
    if isinstance(first, Sublayer):
        paths = [path for path, _ in first.readers] + [first.writer]
        fixed = sum(model.get_submodule(path).weight.numel() for path in first.fixed)
        owned = sum(model.get_submodule(path).weight.numel() for path in paths)
        width = first.unit_width
    elif first.kind == "experts":
        owned = first.num_units * parameters_per_unit(model, first)
    step = alignment if first.kind in ("kv_groups", "ffn", "hidden") else 1
    numbers = range(first.least, first.num_units + 1)
    choices = tuple(n for n in numbers if n * width % step == 0)
    if not choices:
        raise ValueError(
            f"{NAMES[first.kind]}: no width up to {first.num_units * width} is a multiple of "
            f"{alignment}; choose exports with a smaller group_size"
        )
    return Matrices(first.num_units, owned // first.num_units, fixed, choices)


def describe(num_units: dict[str, int], num_kept: dict[str, int]) -> str:
    return ", ".join(f"{NAMES[kind]} {num_units[kind]} -> {num_kept[kind]}" for kind in num_kept)


def choose_widths(matrices: dict[str, Matrices], asked: dict[str, float]) -> dict[str, int]:
    """Return units kept by kind.

    One fraction is asked of attention first, whose steps are coarse; the FFN then brings the sum
    as near to the fraction as its finer steps allow.
    """
    if "all" not in asked:
        return {
            kind: m.nearest(m.total * (1 - asked.get(kind, 0.0))) for kind, m in matrices.items()
        }
    density = 1 - asked["all"]
    groups, ffn = matrices["kv_groups"], matrices["ffn"]
    num_groups = groups.nearest(groups.total * density)
    left = (groups.total + ffn.total) * density - groups.size(num_groups)
    whole = {kind: m.num_units for kind, m in matrices.items()}
    return whole | {"kv_groups": num_groups, "ffn": ffn.nearest(left)}


def removed(matrices: dict[str, Matrices], num_kept: dict[str, int]) -> dict[str, float]:
    """Return the sparsity by kind and, under `all`, of the kinds together."""
    sizes: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    density = 1.0
    for kind, matrix in matrices.items():
        network_wide = kind in ("hidden", "layers", "sublayers")
        for name in (kind,) if network_wide else (kind, "all"):
            sizes[name] += matrix.size(num_kept[kind])
            totals[name] += matrix.total
        density *= sizes[kind] / totals[kind] if network_wide else 1.0
    got = {name: 1 - sizes[name] / totals[name] for name in totals}
    got["all"] = 1 - (1 - got.get("all", 0.0)) * density
    return {name: round(fraction, 6) for name, fraction in got.items()}
