"""Rounds: cut a part, repair, look again at what is left, cut more.

What a round hands to the next one is no model but the units that it keeps, by their places in the
incoming model, and what the criterion says of them in a model that is cut to them and repaired.
So every repair, the last cut's as well, is towards the incoming model, and no error of an earlier
round's repair is built upon.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.plugins import load_plugin
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.choosing import ask, list_distinct, rank_cut, sink
from tasks.prune.cutting import cut_stock, judge, repair_cut
from tasks.prune.sweep.sweep import Choice
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.groups import find_units
from tasks.prune.units.units import Kept

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


JUDGED = ("nats_per_token", "utility")


class Trial(NamedTuple):
    """One unit of work: which units to keep, and how many of them will stay after the next
    round, by kind."""

    kept: Kept
    then: dict[str, int]


def run_rounds(
    space: StageSpace, work: Work, choice: Choice, seen: dict[str, Any]
) -> tuple[Choice, list[dict[str, Any]]]:
    """Go through all rounds but the last.

    Args:
        choice: The criterion's, of the incoming model's units.
        seen: The answer of the look.

    Returns:
        The criterion's choice for the last round; and what each round kept and lost.
    """
    told = []
    for number, (now, then) in enumerate(pairwise(seen["rounds"]), 1):
        choice = choice._replace(num_kept=[now[kind] for kind in seen["kinds"]])
        opinions = ask(space, work, choice, seen, group=f"round{number}/sweep")
        found = list_distinct(opinions.choices)
        trials = [Trial(kept, then) for kept in found.values()]
        answers = space.compute_units(
            try_cut, trials, partial(build_bench, work), group=f"round{number}/cut"
        )
        measured = dict(zip(found, map(json.loads, answers), strict=True))
        best = max(measured, key=lambda name: rank_cut(measured[name]))
        chosen, again = opinions.choices[best], measured[best]["importance"]
        choice = look_again(chosen._replace(left=found[best]), again)
        told.append({"kept": now, "chosen": best} | {k: measured[best][k] for k in JUDGED})
    return choice._replace(num_kept=[seen["num_kept"][kind] for kind in seen["kinds"]]), told


def look_again(choice: Choice, again: list[list[float] | None]) -> Choice:
    """Take over what the criterion says of the units that are left.

    Args:
        again: Per group, importance of the units left; None where nothing is open any more: the
            kind has its final number, or the layer has gone.
    """
    assert choice.left is not None
    fixed = [f or new is None for f, new in zip(choice.fixed, again, strict=True)]
    importance = [scores.copy() for scores in choice.importance]
    for scores, mask, new in zip(importance, choice.left, again, strict=True):
        if new is not None:
            scores[mask] = new
    return choice._replace(importance=sink(importance, choice.left), fixed=fixed)


def try_cut(bench: Bench, trial: Trial) -> bytes:
    """Cut and repair; ask the criterion about the units of which some are still to go.

    Returns:
        JSON: `nats_per_token` and `utility` as of a candidate, and `importance` per group of the
        incoming model: of the units left, or null.
    """
    options, groups, kept = bench.work.options, bench.groups, trial.kept
    smaller = cut_stock(bench, kept, repair_cut(bench, kept))
    num_left = {g.kind: int(mask.sum()) for g, mask in zip(groups, kept, strict=True)}
    open_kinds = [kind for kind, n in num_left.items() if n > bench.shape.num_kept[kind]]
    left = find_units(smaller, open_kinds, options["trust_remote_code"])
    num_kept = [trial.then[group.kind] for group in left]
    calibrated, nats = calibrate(smaller, left, bench.ids_WS, num_kept)
    score = load_plugin("criterion", options["criterion"]["name"])
    scores = score(calibrated, **options["criterion"]["options"])
    places = {(group.kind, group.layer): s for group, s in zip(left, scores, strict=True)}

    layers = [mask for g, mask in zip(groups, kept, strict=True) if g.kind == "layers"]
    stay = np.flatnonzero(layers[0] if layers else np.ones(bench.shape.num_layers)).tolist()
    numbers: dict[int | None, int | None] = {old: new for new, old in enumerate(stay)}
    numbers[None] = None
    importance = [
        places[g.kind, numbers[g.layer]].double().tolist()
        if g.kind in open_kinds and g.layer in numbers
        else None
        for g in groups
    ]
    return json.dumps(judge(bench, smaller, nats) | {"importance": importance}).encode()
