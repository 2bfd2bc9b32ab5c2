"""How far a model can be cut, what the cut models cost, and which budgets cannot be kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tasks.prune.budgets.budget import BYTES_PER_PARAMETER, Room
from tasks.prune.shapes.prunable import SHAPES, find_groups, list_prunable
from tasks.prune.shapes.stock_class import empty_model, name_class
from tasks.prune.shapes.stock_config import cannot_cut, smaller_config
from tasks.prune.shapes.widths import count_matrices, describe
from tasks.prune.units.units import Units


class Limit(NamedTuple):
    """What a budget asks for."""

    name: str
    """`num_parameters`, `bytes` or `latency_ms`."""
    asked: float

    def __str__(self) -> str:
        return f"{self.name} {self.asked:,.10g}"

    def cost(self, num_parameters: float) -> float:
        return num_parameters * (BYTES_PER_PARAMETER if self.name == "bytes" else 1)


def find_limit(budget: dict[str, Any]) -> Limit:
    """Return the one limit that is given."""
    for name in ("num_parameters", "bytes"):
        if budget[name] is not None:
            return Limit(name, float(budget[name]))
    return Limit("latency_ms", float(budget["latency_ms"]))


def find_budget_groups(
    model: Any, budget: dict[str, Any], trust_remote_code: bool = False
) -> tuple[list[Units], list[str]]:
    """Return the groups of units that there are, and the kinds that may be cut.

    Raises:
        ValueError: a kind that is asked for cannot be cut, or none can.
    """
    prunable = list_prunable(model, trust_remote_code)
    kinds = prunable if budget["kinds"] is None else budget["kinds"]
    if refused := [kind for kind in kinds if kind not in prunable]:
        reason = "stock code builds no model with fewer"
        raise ValueError(cannot_cut(model.config.model_type, refused, prunable, reason))
    if not kinds:
        raise ValueError(f"{model.config.model_type} cannot be pruned: no kind of unit can be cut")
    return find_groups(model, kinds, trust_remote_code), kinds


def find_room(model: Any, groups: list[Units], kinds: list[str], alignment: int) -> Room:
    """Return what may stay of each kind.

    Raises:
        ValueError: no width is a multiple of the alignment.
    """
    num_units: dict[str, int] = {}
    choices: dict[str, tuple[int, ...]] = {}
    for kind in SHAPES:
        of_kind = [group for group in groups if group.kind == kind]
        if not of_kind:
            continue
        matrices = count_matrices(model, of_kind, alignment)
        num_units[kind] = matrices.num_units
        if kind not in kinds:
            choices[kind] = (matrices.nearest(matrices.total),)
            continue
        choices[kind] = matrices.choices
        if kind in ("hidden", "kv_groups"):  # some configs want one to divide the other
            accepted = (n for n in matrices.choices if is_accepted(model, groups, {kind: n}))
            choices[kind] = tuple(accepted) or (matrices.num_units,)
    return Room(num_units, choices)


def is_accepted(model: Any, groups: list[Units], num_kept: dict[str, int]) -> bool:
    try:
        smaller_config(model.config, groups, num_kept)
    except ValueError:
        return False
    return True


def count_parameters(
    model: Any, groups: list[Units], num_kept: dict[str, int], trust_remote_code: bool = False
) -> int:
    """Return exactly how many parameters stock code gives a shape, tied ones once."""
    smaller = empty_model(config_of_shape(model, groups, num_kept), trust_remote_code)
    return sum(parameter.numel() for parameter in smaller.parameters())


def config_of_shape(model: Any, groups: list[Units], num_kept: dict[str, int]) -> Any:
    """Return the config of a shape whose first layers stay."""
    cut = {g.kind: num_kept[g.kind] for g in groups if num_kept[g.kind] < g.num_units}
    layers = np.arange(model.config.num_hidden_layers)
    first = layers < cut.get("layers", len(layers))
    return smaller_config(name_class(model), groups, cut, first)


def check_limit(limit: Limit, room: Room, smallest: float, dense: float) -> None:
    """Make sure that there is something to cut, and that the cut can go so far.

    Args:
        smallest: Cost of the smallest shape.
        dense: Cost of the model as it is.

    Raises:
        ValueError: the budget cannot be met, or the model meets it already.
    """
    if limit.asked >= dense:
        raise ValueError(
            f"budget: asked for {limit}, the model has {dense:,.10g}: there is nothing to cut; "
            "ask for less, or leave the prune step out"
        )
    if limit.asked < smallest:
        raise ValueError(
            f"budget: asked for {limit}, the smallest possible is {smallest:,.10g} "
            f"({describe(room.num_units, room.least)}); ask for that or more, let more kinds be "
            "cut, or choose exports with a smaller group_size"
        )


class Prospect(NamedTuple):
    """What is known of a budget before the run."""

    limit: Limit
    smallest: float | None
    dense: float | None
    """Costs; None where only the run can measure them."""

    def __str__(self) -> str:
        if self.smallest is None or self.dense is None:
            return f"budget {self.limit}, measured and solved in the run"
        return (
            f"budget {self.limit} of {self.dense:,.10g}, solved in the run "
            f"(smallest possible {self.smallest:,.10g})"
        )


def foresee(
    model: Any, options: dict[str, Any], alignment: int, trust_remote_code: bool = False
) -> Prospect:
    """Hold a budget against a model without storage.

    Raises:
        ValueError: as `check_limit`, or the architecture has nothing to cut.
    """
    limit = find_limit(options["budget"])
    groups, kinds = find_budget_groups(model, options["budget"], trust_remote_code)
    room = find_room(model, groups, kinds, alignment)
    if limit.name == "latency_ms":
        return Prospect(limit, None, None)
    smallest = limit.cost(count_parameters(model, groups, room.least, trust_remote_code))
    dense = limit.cost(sum(parameter.numel() for parameter in model.parameters()))
    check_limit(limit, room, smallest, dense)
    return Prospect(limit, smallest, dense)
