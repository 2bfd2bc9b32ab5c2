"""The prune stage: look, sweep, learn, cut; every forward pass is a worker's.

1. One unit of work runs the calibration text through the dense model and asks the criterion.
2. The sweep scores sub-models near the criterion's choice (`method: perturbation`).
3. A regression corrects the criterion's importance by what the sweep has seen.
4. The criterion's choice and the learned one are both cut and repaired; the one of more utility on
   the calibration text is the stage's output, so that a sweep never does worse than none.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.models.checkpoint import describe_model
from tasks.plugins import load_plugin
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.budgets.solving import solve_budget
from tasks.prune.cutting import Candidate, build_cutter, cut_candidate
from tasks.prune.repair.repair import SHARED
from tasks.prune.shapes.allocation import allocate_widths, describe_widths
from tasks.prune.shapes.widths import describe
from tasks.prune.sweep.learning import describe_sweep, learn
from tasks.prune.sweep.sweep import Choice, check_windows, cut_units, score_unit
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.units import KINDS, parameters_per_unit
from tasks.prune.utility import load_utility
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage import StageSpace

Facts = dict[str, str | int | float]


def prune(
    space: StageSpace, options: dict[str, Any], *, model: ModelRef, calibration: TextRef
) -> ModelRef:
    """Cut a model to a smaller one that stock code loads; leaves `evidence.json` beside it.

    Raises:
        ValueError: the architecture, the sparsity or the windows do not allow it; or the utility
            does not import, or is no finite number for too many sub-models.
        CorpusError: the calibration text is too short.
        CheckpointError: the model does not load.
    """
    check_windows(options)
    load_utility(options["utility"])
    work = Work(space.localizer, model.uri, calibration.uri, options)
    solved = solve_budget(space, work) if options["budget"] else None
    if solved:
        work = replace(work, options=options | {"num_kept": solved.num_kept})
    (answer,) = space.compute_units(look, [0], partial(build_bench, work), group="look")
    seen = json.loads(answer)
    prior = [np.array(scores) for scores in seen["importance"]]
    fixed = [kind in SHARED and options["repair"] for kind in seen["kinds"]]
    choice = Choice(prior, seen["num_kept_per_group"], fixed, options["sampling"])
    allocated = None
    if options["shape"] != "uniform":
        allocated = allocate_widths(space, partial(build_bench, work), choice, seen)
        choice = choice._replace(num_kept=allocated.num_kept)

    learned = None
    importance = {"criterion": prior}
    if options["method"] == "perturbation":
        units = cut_units(choice, options)
        results = space.compute_units(score_unit, units, partial(build_bench, work), group="sweep")
        learned = learn(units, results, seen, options)
        importance["sweep"] = learned.importance

    choices = {name: choice._replace(importance=scores) for name, scores in importance.items()}
    if allocated and allocated.num_kept != seen["num_kept_per_group"]:
        last = list(choices.values())[-1]
        choices["uniform"] = last._replace(num_kept=seen["num_kept_per_group"])
    candidates: list[Candidate] = []
    for name, chosen in choices.items():
        kept = chosen.best()
        if candidates and all(map(np.array_equal, candidates[-1].kept, kept)):
            candidates.pop()  # the sweep agrees with the criterion
        candidates.append(Candidate(name, kept, f"{space.prefix}/cut/{name}"))
    cutter = partial(build_cutter, work, space.store)
    cuts = space.compute_units(cut_candidate, candidates, cutter, group="cut")
    measured = {c.name: json.loads(cut) for c, cut in zip(candidates, cuts, strict=True)}
    best = max(candidates, key=lambda candidate: rank_cut(measured[candidate.name]))
    for path in measured[best.name].pop("files"):
        (space.out / path).parent.mkdir(parents=True, exist_ok=True)
        space.store.get_file(f"{best.prefix}/{path}", space.out / path)

    evidence = {
        "importance": by_kind(seen["kinds"], [s.tolist() for s in choices[best.name].importance]),
        "kept": by_kind(seen["kinds"], choices[best.name].num_kept),
        "kept_units": by_kind(seen["kinds"], [np.flatnonzero(k).tolist() for k in best.kept]),
        "num_units": seen["num_units"],
        "num_kept": seen["num_kept"],
        "sparsity": {"asked": seen["asked"], "got": seen["got"]},
        "utility": options["utility"],
        "dense_nats_per_token": seen["nats_per_token"],
        "candidates": measured,
        "chosen": best.name,
    } | (describe_sweep(learned) if learned else {})
    evidence |= {"budget": solved.evidence} if solved else {}
    evidence |= {"allocation": allocated.evidence} if allocated else {}
    space.store.write(f"{space.prefix}/evidence.json", json.dumps(evidence).encode())
    facts = gather_facts(evidence, seen, options) | (solved.facts if solved else {})
    if allocated:
        facts |= describe_widths(seen, choices[best.name].num_kept, options["shape"])
    return describe_model(space.out, space.output_uri(), None, **facts)


def look(bench: Bench, _unit: int) -> bytes:
    """Run the dense model; return JSON: the shape to cut to and the criterion's importance."""
    options, shape, groups = bench.work.options, bench.shape, bench.groups
    score = load_plugin("criterion", options["criterion"]["name"])
    num_kept = [shape.num_kept[group.kind] for group in groups]
    calibrated, nats = calibrate(bench.model, groups, bench.ids_WS, num_kept)
    scores = score(calibrated, **options["criterion"]["options"])
    return json.dumps(
        {
            "shape": str(shape),
            "saved_as": shape.saved_as,
            "num_units": shape.num_units,
            "num_kept": shape.num_kept,
            "choices": shape.choices,
            "asked": shape.asked,
            "got": shape.got,
            "kinds": [group.kind for group in groups],
            "num_kept_per_group": num_kept,
            "parameters_per_unit": [parameters_per_unit(bench.model, group) for group in groups],
            "importance": [importance.double().tolist() for importance in scores],
            "nats_per_token": nats,
            "refined": describe_refinement(bench) if options["repair"] else "nothing",
        }
    ).encode()


def describe_refinement(bench: Bench) -> str:
    """Say which sublayers the repair can fit as a whole."""
    anatomy = bench.anatomy
    whole = sum(activation is not None for activation in anatomy.activations)
    if not whole or not bench.work.options["refine"]:
        return "nothing"
    return f"{whole} feed-forward sublayers" + (", the last to the logits" if anatomy.head else "")


def rank_cut(measured: dict[str, Any]) -> tuple[float, float]:
    """Order cuts by utility; those that have none come last, by their loss."""
    utility = measured["utility"]
    return -math.inf if utility is None else utility, -measured["nats_per_token"]


def by_kind(kinds: list[str], values: list[Any]) -> dict[str, list[Any]]:
    """Sort what is given per group by kind of unit: [layer] each, or one."""
    return {
        kind: [value for of, value in zip(kinds, values, strict=True) if of == kind]
        for kind in KINDS
        if kind in kinds
    }


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
