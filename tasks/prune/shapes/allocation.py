"""Widths by sublayer: who keeps more and who less, out of the same total.

Around the uniform shape, each sublayer by itself is cut further or less, and what the repaired
model then loses is measured. An integer program chooses one width per sublayer, for a short way
from the uniform shape and for longer ones; a measurement decides between them, since sublayers
that change together lose not quite the sum of what each one loses alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from tasks.prune.budgets.budget import Floats, interpolate_rise
from tasks.prune.budgets.sensitivity import measure_choice
from tasks.prune.sweep.sweep import Choice

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

PER_SUBLAYER = ("kv_groups", "ffn")
"""Kinds that each sublayer has for itself."""

REACHES = (0.3, 0.15)
"""How far widths may be from the uniform one, as a part of it."""


class Options(NamedTuple):
    """The widths that one sublayer may have."""

    group: int
    """Position among the groups of units."""
    kind: str
    choices: list[int]
    """Numbers of units, ascending."""
    per_unit: int
    """Parameters."""
    uniform: int
    """Units kept in the uniform shape."""

    def within(self, reach: float) -> list[int]:
        """Return the choices that are so far from the uniform one, as a part of it, or next to
        it."""
        steps = [abs(n - self.uniform) for n in self.choices if n != self.uniform]
        far = max(reach * self.uniform, min(steps, default=0))
        return [n for n in self.choices if abs(n - self.uniform) <= far]


class Allocated(NamedTuple):
    num_kept: list[int]
    """Per group."""
    evidence: dict[str, Any]


def allocate_widths(
    space: StageSpace, state: Any, choice: Choice, seen: dict[str, Any]
) -> Allocated:
    """Choose each sublayer's width.

    Args:
        state: Builds a worker's bench.
        choice: The criterion's, of the uniform shape.
        seen: The answer of the look.
    """
    sublayers = list_options(choice, seen)
    uniform = list(choice.num_kept)
    trials = [
        (number, width)
        for number, sublayer in enumerate(sublayers)
        for width in pick_levels(sublayer)
    ]
    shapes = [uniform]
    for number, width in trials:
        shapes.append(list(uniform))
        shapes[-1][sublayers[number].group] = width
    measured = measure(space, state, choice, shapes, "sublayers")
    rises: list[dict[int, float]] = [{sublayer.uniform: 0.0} for sublayer in sublayers]
    for (number, width), nats in zip(trials, measured[1:], strict=True):
        rises[number][width] = nats - measured[0]
    curves = [interpolate_rise(s.choices, r) for s, r in zip(sublayers, rises, strict=True)]

    together = "all" in seen["asked"]
    totals = [list(PER_SUBLAYER)] if together else [[kind] for kind in PER_SUBLAYER]
    proposed = []
    for reach in REACHES:
        proposed.append(list(uniform))
        widths = solve_widths(sublayers, curves, totals, reach)
        for sublayer, width in zip(sublayers, widths, strict=True):
            proposed[-1][sublayer.group] = width
    found = measure(space, state, choice, proposed, "allocated")
    evidence = {
        "rises": [{"kind": s.kind, "rise": r} for s, r in zip(sublayers, rises, strict=True)],
        "uniform_nats_per_token": measured[0],
        "proposed": [
            {"reach": reach, "num_kept": shape, "nats_per_token": n}
            for reach, shape, n in zip(REACHES, proposed, found, strict=True)
        ],
    }
    return Allocated(proposed[int(np.argmin(found))], evidence)


def list_options(choice: Choice, seen: dict[str, Any]) -> list[Options]:
    """Return what each sublayer with units of its own may keep."""
    found = []
    groups = zip(seen["kinds"], choice.num_kept, seen["parameters_per_unit"], strict=True)
    for group, (kind, uniform, per_unit) in enumerate(groups):
        if kind in PER_SUBLAYER:
            sublayer = Options(group, kind, seen["choices"][kind], per_unit, uniform)
            found.append(sublayer._replace(choices=sublayer.within(max(REACHES))))
    return found


def pick_levels(sublayer: Options) -> list[int]:
    """Return the widths to measure."""
    return sorted({sublayer.choices[0], sublayer.choices[-1]} - {sublayer.uniform})


def measure(
    space: StageSpace, state: Any, choice: Choice, shapes: list[list[int]], group: str
) -> list[float]:
    units = [choice._replace(num_kept=shape) for shape in shapes]
    return [json.loads(a) for a in space.compute_units(measure_choice, units, state, group=group)]


def solve_widths(
    sublayers: Sequence[Options],
    rises: Sequence[Floats],
    totals: Sequence[Sequence[str]],
    reach: float = max(REACHES),
) -> list[int]:
    """Return the width of each sublayer, with the least sum of rises.

    Args:
        rises: Of the loss, per sublayer for each of its choices.
        totals: Lists of kinds that together keep at most as many parameters as when uniform.
        reach: How far a width may be from the uniform one, or the next one to it.
    """
    sizes = [np.array(s.choices) * s.per_unit for s in sublayers]
    ends = np.cumsum([len(s.choices) for s in sublayers])
    owner = np.repeat(np.arange(len(sublayers)), np.diff(ends, prepend=0))
    one_each = (owner == np.arange(len(sublayers))[:, None]).astype(float)
    constraints = [LinearConstraint(one_each, 1, 1)]
    for kinds in totals:
        counted = [s.kind in kinds for s in sublayers]
        row = np.concatenate([size * c for size, c in zip(sizes, counted, strict=True)])
        most = sum(s.uniform * s.per_unit for s in sublayers if s.kind in kinds)
        if most:
            constraints.append(LinearConstraint(row[None] / most, -np.inf, 1 + 1e-9))
    within = [n in s.within(reach) for s in sublayers for n in s.choices]
    solution = milp(
        np.concatenate(rises),
        constraints=constraints,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, np.array(within, dtype=float)),
        options={"mip_rel_gap": 0.0},
    )
    assert solution.success, solution.message  # the uniform widths are always a solution
    chosen = np.split(solution.x, ends[:-1])
    return [s.choices[int(np.argmax(x))] for s, x in zip(sublayers, chosen, strict=True)]


def describe_widths(
    seen: dict[str, Any], num_kept: list[int], shape: str
) -> dict[str, str | int | float]:
    """Say how wide each sublayer is, and how much of a padded model is zeros.

    `sparsity_saved` is what a padded model is smaller by; `sparsity_got` counts its zeros, too.
    """
    facts: dict[str, str | int | float] = {}
    whole = kept_in_all = wide_in_all = 0
    for kind in PER_SUBLAYER:
        of_kind = [group for group, k in enumerate(seen["kinds"]) if k == kind]
        if not of_kind:
            continue
        widths = [num_kept[group] for group in of_kind]
        per_unit = seen["parameters_per_unit"][of_kind[0]]
        facts[f"widths_{kind}"] = " ".join(map(str, widths))
        facts[f"widest_{kind}"] = max(widths)
        facts[f"sparsity_got_{kind}"] = round(
            1 - sum(widths) / (len(widths) * seen["num_units"][kind]), 6
        )
        whole += len(widths) * seen["num_units"][kind] * per_unit
        kept_in_all += sum(widths) * per_unit
        wide_in_all += len(widths) * max(widths) * per_unit
    facts["sparsity_got_all"] = round(1 - kept_in_all / whole, 6)
    if shape == "per_layer":
        return facts | {"loads_with": "trust_remote_code"}
    return facts | {
        "sparsity_saved_all": round(1 - wide_in_all / whole, 6),
        "zero_parameters": wide_in_all - kept_in_all,
    }
