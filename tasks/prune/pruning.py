"""The prune stage: look, sweep, learn, cut; every forward pass is a worker's.

1. One unit of work runs the calibration text through the dense model and asks the criterion.
2. The sweep scores sub-models near the criterion's choice (`method: perturbation`).
3. A regression corrects the criterion's importance by what the sweep has seen.
4. The criterion's choice and the learned one are both cut and repaired; the one of more utility on
   the calibration text is the stage's output, so that a sweep never does worse than none.

With `rounds` these are gone through several times, on the way to the same shape (`rounds`); what
the criterion would have chosen at once is cut as well, and compared.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.models.checkpoint import describe_model
from tasks.prune.bench import Work, build_bench
from tasks.prune.budgets.solving import solve_budget
from tasks.prune.choosing import ask, list_distinct, rank_cut
from tasks.prune.cutting import Candidate, build_cutter, cut_candidate
from tasks.prune.evidence import AT_ONCE, by_kind, describe_rounds, gather_facts
from tasks.prune.look import look
from tasks.prune.repair.repair import SHARED
from tasks.prune.rounds import run_rounds
from tasks.prune.shapes.absent import describe_absent
from tasks.prune.shapes.allocation import allocate_widths, describe_widths
from tasks.prune.sweep.learning import describe_sweep
from tasks.prune.sweep.sweep import Choice, check_windows
from tasks.prune.units.layers import silence
from tasks.prune.utility import load_utility
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


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
    if options["shape"] != "uniform" and "sublayers" not in seen["num_kept"]:
        allocated = allocate_widths(space, partial(build_bench, work), choice, seen)
        choice = choice._replace(num_kept=allocated.num_kept)

    first = choice
    told: list[dict[str, Any]] = []
    if len(seen["rounds"]) > 1:
        choice, told = run_rounds(space, work, choice, seen)
    choices, learned = ask(space, work, choice, seen, group="sweep")
    if told:
        choices = {AT_ONCE: first, **choices}
    if allocated and allocated.num_kept != seen["num_kept_per_group"]:
        last = list(choices.values())[-1]
        choices["uniform"] = last._replace(num_kept=seen["num_kept_per_group"])
    candidates = [
        Candidate(name, silence(seen["kinds"], kept), f"{space.prefix}/cut/{name}")
        for name, kept in list_distinct(choices).items()
    ]
    cutter = partial(build_cutter, work, space.store)
    cuts = space.compute_units(cut_candidate, candidates, cutter, group="cut")
    measured = {c.name: json.loads(cut) for c, cut in zip(candidates, cuts, strict=True)}
    best = max(candidates, key=lambda candidate: rank_cut(measured[candidate.name]))
    for path in measured[best.name].pop("files"):
        (space.out / path).parent.mkdir(parents=True, exist_ok=True)
        space.store.get_file(f"{best.prefix}/{path}", space.out / path)

    evidence = {
        "importance": by_kind(seen["kinds"], [s.tolist() for s in choices[best.name].importance]),
        "kept": by_kind(seen["kinds"], [int(k.sum()) for k in best.kept]),
        "kept_units": by_kind(seen["kinds"], [np.flatnonzero(k).tolist() for k in best.kept]),
        "num_units": seen["num_units"],
        "num_kept": seen["num_kept"],
        "sparsity": {"asked": seen["asked"], "got": seen["got"]},
        "utility": options["utility"],
        "dense_nats_per_token": seen["nats_per_token"],
        "candidates": measured,
        "chosen": best.name,
    } | (describe_sweep(learned) if learned else {})
    evidence |= {"rounds": describe_rounds(told, seen, measured)} if told else {}
    evidence |= {"budget": solved.evidence} if solved else {}
    evidence |= {"allocation": allocated.evidence} if allocated else {}
    space.store.write(f"{space.prefix}/evidence.json", json.dumps(evidence).encode())
    facts = gather_facts(evidence, seen, options) | (solved.facts if solved else {})
    if options["shape"] != "uniform":
        widths = [int(k.sum()) for k in best.kept]
        facts |= describe_widths(seen, widths, options["shape"])
        facts |= {"absent": absent} if (absent := describe_absent(seen["kinds"], best.kept)) else {}
    return describe_model(space.out, space.output_uri(), None, **facts)
