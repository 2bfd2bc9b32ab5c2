"""What a prune stage tells about itself: `evidence.json` for the report, and a few facts."""

from __future__ import annotations

from typing import Any

from tasks.prune.choosing import rank_cut
from tasks.prune.shapes.widths import describe
from tasks.prune.units.units import KINDS

AT_ONCE = "one_round"
"""The candidate that the criterion would have chosen without rounds."""

Facts = dict[str, str | int | float]


def by_kind(kinds: list[str], values: list[Any]) -> dict[str, list[Any]]:
    """Sort what is given per group by kind of unit: [layer] each, or one."""
    return {
        kind: [value for of, value in zip(kinds, values, strict=True) if of == kind]
        for kind in KINDS
        if kind in kinds
    }


def describe_rounds(
    told: list[dict[str, Any]], seen: dict[str, Any], measured: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Say what was kept after each round and what that cost; of the last one, the better cut."""
    last = {name: cut for name, cut in measured.items() if name != AT_ONCE}
    best = max(last, key=lambda name: rank_cut(last[name]))
    judged = {name: last[best][name] for name in ("nats_per_token", "utility")}
    return [*told, {"kept": seen["num_kept"], "chosen": best} | judged]


def gather_facts(evidence: dict[str, Any], seen: dict[str, Any], options: dict[str, Any]) -> Facts:
    """Say in a few words and numbers what was cut and what it cost on the calibration text."""
    facts: Facts = {
        "shape": describe(seen["num_units"], seen["num_kept"]),
        "saved_as": seen["saved_as"],
        "criterion": options["criterion"]["name"],
        "chosen": evidence["chosen"],
        "repaired": "yes" if options["repair"] else "no",
        "refined": seen["refined"],
        "calibration_nats_dense": round(seen["nats_per_token"], 4),
    }
    facts |= {f"sparsity_asked_{kind}": value for kind, value in seen["asked"].items()}
    facts |= {f"sparsity_got_{kind}": value for kind, value in seen["got"].items()}
    for name, cut in evidence["candidates"].items():
        facts[f"calibration_nats_{name}"] = round(cut["nats_per_token"], 4)
    for number, told in enumerate(evidence.get("rounds", ()), 1):
        facts[f"kept_round_{number}"] = describe(seen["num_units"], told["kept"])
        facts[f"calibration_nats_round_{number}"] = round(told["nats_per_token"], 4)
    if options["utility"] != "loss":
        facts["utility"] = options["utility"]
        for name, cut in evidence["candidates"].items():
            facts[f"utility_{name}"] = (
                "none" if cut["utility"] is None else round(cut["utility"], 6)
            )
    if evidence.get("num_left_out"):
        facts["left_out"] = f"{evidence['num_left_out']} of {evidence['num_scored']} sub-models"
    for name in ("kendall_tau", "r_squared"):
        if name in evidence:
            facts[name] = round(evidence[name], 3)
    return facts
