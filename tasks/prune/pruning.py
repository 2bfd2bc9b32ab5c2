"""The prune stage: look, sweep, learn, cut; every forward pass is a worker's.

1. One unit of work runs the calibration text through the dense model and asks the criterion.
2. The sweep scores sub-models near the criterion's choice (`method: perturbation`).
3. A regression corrects the criterion's importance by what the sweep has seen.
4. The criterion's choice and the learned one are both cut and repaired; the better one on the
   calibration text is the stage's output, so that a sweep never does worse than none.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.models.checkpoint import describe_model
from tasks.plugins import load_plugin
from tasks.prune.cutting import Candidate, build_cutter, cut_candidate
from tasks.prune.regression import Fitted, HeldOut, fit_utilities, hold_out
from tasks.prune.repair import SHARED
from tasks.prune.shape import describe
from tasks.prune.sweep import (
    Bench,
    Choice,
    SweepUnit,
    Work,
    build_bench,
    check_windows,
    cut_units,
    list_submodels,
    score_unit,
)
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units import KINDS, parameters_per_unit
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage import StageSpace

Facts = dict[str, str | int | float]

FFN_SPREADS = (1.0, 0.3, 0.1)
"""By how much less than a KV group's, in proportion to its parameters' square root, a neuron's
contribution may differ from what the criterion says; leave-one-out decides."""


class Learned(NamedTuple):
    """What the sweep taught."""

    importance: list[NDArray[np.float64]]
    fitted: Fitted
    held_out: HeldOut | None


def prune(
    space: StageSpace, options: dict[str, Any], *, model: ModelRef, calibration: TextRef
) -> ModelRef:
    """Cut a model to a smaller one that stock code loads; leaves `evidence.json` beside it.

    Raises:
        ValueError: the architecture, the sparsity or the windows do not allow it.
        CorpusError: the calibration text is too short.
        CheckpointError: the model does not load.
    """
    check_windows(options)
    work = Work(space.localizer, model.uri, calibration.uri, options)
    (answer,) = space.compute_units(look, [0], partial(build_bench, work), group="look")
    seen = json.loads(answer)
    prior = [np.array(scores) for scores in seen["importance"]]
    fixed = [kind in SHARED and options["repair"] for kind in seen["kinds"]]
    choice = Choice(prior, seen["num_kept_per_group"], fixed)

    learned = None
    importance = {"criterion": prior}
    if options["method"] == "perturbation":
        units = cut_units(choice, options)
        results = space.compute_units(score_unit, units, partial(build_bench, work), group="sweep")
        learned = learn(units, results, seen, options["seed"])
        importance["sweep"] = learned.importance

    candidates = [
        Candidate(name, choice._replace(importance=scores).best(), f"{space.prefix}/cut/{name}")
        for name, scores in importance.items()
    ]
    first, last = candidates[0].kept, candidates[-1].kept
    if all(np.array_equal(a, b) for a, b in zip(first, last, strict=True)):
        candidates = candidates[-1:]  # the sweep agrees with the criterion
    cutter = partial(build_cutter, work, space.store)
    cuts = space.compute_units(cut_candidate, candidates, cutter, group="cut")
    measured = {c.name: json.loads(cut) for c, cut in zip(candidates, cuts, strict=True)}
    best = min(candidates, key=lambda candidate: measured[candidate.name]["nats_per_token"])
    for path in measured[best.name].pop("files"):
        (space.out / path).parent.mkdir(parents=True, exist_ok=True)
        space.store.get_file(f"{best.prefix}/{path}", space.out / path)

    evidence = {
        "importance": by_kind(seen["kinds"], [s.tolist() for s in importance[best.name]]),
        "kept": by_kind(seen["kinds"], seen["num_kept_per_group"]),
        "kept_units": by_kind(seen["kinds"], [np.flatnonzero(k).tolist() for k in best.kept]),
        "num_units": seen["num_units"],
        "num_kept": seen["num_kept"],
        "sparsity": {"asked": seen["asked"], "got": seen["got"]},
        "dense_nats_per_token": seen["nats_per_token"],
        "candidates": measured,
        "chosen": best.name,
    } | (describe_sweep(learned) if learned else {})
    space.store.write(f"{space.prefix}/evidence.json", json.dumps(evidence).encode())
    facts = gather_facts(evidence, seen, options)
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


def learn(units: list[SweepUnit], results: list[bytes], seen: dict[str, Any], seed: int) -> Learned:
    """Fit the units' contributions to what the sweep measured.

    A unit's contribution is expected to differ from what the criterion says by an amount that
    grows with the square root of its number of parameters; a neuron's perhaps by less.
    """
    choice = units[0].choice
    submodels = [list_submodels(unit, seed) for unit in units]
    masks = np.array([np.concatenate(kept) for group in submodels for kept in group], dtype=float)
    utilities = np.array([value for result in results for value in json.loads(result)])
    groups = np.repeat(np.arange(len(units)), [len(group) for group in submodels])
    drawn = np.array([place > 0 for group in submodels for place in range(len(group))])
    sizes = [len(scores) for scores in choice.importance]
    spread = np.repeat(np.sqrt(seen["parameters_per_unit"]), sizes)
    is_ffn = np.repeat([kind == "ffn" for kind in seen["kinds"]], sizes)
    spreads = [np.where(is_ffn, factor * spread, spread) for factor in FFN_SPREADS]
    prior = np.concatenate(choice.importance)
    fitted = fit_utilities(masks, utilities, groups, prior, spreads)
    return Learned(
        importance=np.split(fitted.weights, np.cumsum(sizes)[:-1]),
        fitted=fitted,
        held_out=hold_out(masks, utilities, groups, prior, spreads, drawn),
    )


def by_kind(kinds: list[str], values: list[Any]) -> dict[str, list[Any]]:
    """Sort what is given per group by kind of unit: [layer] each, or one."""
    return {
        kind: [value for of, value in zip(kinds, values, strict=True) if of == kind]
        for kind in KINDS
        if kind in kinds
    }


def describe_sweep(learned: Learned) -> dict[str, Any]:
    fitted, held_out = learned.fitted, learned.held_out
    described: dict[str, Any] = {
        "prior_scale": fitted.prior_scale,
        "penalty": fitted.penalty,
        "loo_rmse_nats": fitted.loo_rmse,
    }
    if held_out:
        described |= {
            "predicted": held_out.predicted.tolist(),
            "measured": held_out.measured.tolist(),
            "kendall_tau": held_out.kendall_tau,
            "r_squared": held_out.r_squared,
        }
    return described


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
    for name in ("kendall_tau", "r_squared"):
        if name in evidence:
            facts[name] = round(evidence[name], 3)
    return facts
