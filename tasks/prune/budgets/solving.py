"""Solve a budget for a uniform shape, by units of work.

1. A survey: how far each kind can be cut, what the corners of that room cost (parameters are
   counted, times are measured), and how the criterion ranks the units.
2. The loss with one kind cut to one level, a few levels per kind.
3. A proposal: the shapes with the least predicted loss under the budget (`budget`).
4. Their losses; the least decides. A time is measured for each proposed shape, and where it
   misses the budget by much, the next proposal aims lower or higher by as much.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.budgets.budget import (
    Cost,
    Floats,
    Room,
    find_finalists,
    increasing_cost,
    interpolate_rise,
    predict_loss,
)
from tasks.prune.budgets.latency import Protocol, time_shape
from tasks.prune.budgets.room import (
    Limit,
    check_limit,
    count_parameters,
    find_budget_groups,
    find_limit,
    find_room,
)
from tasks.prune.budgets.sensitivity import Ranked, measure_choice, rank_units, read_ranked
from tasks.prune.shapes.prunable import prove_shape

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

MAX_PROPOSALS = 4
"""Only a time can need more than one: it is predicted, not counted."""

MAX_MISS = 0.1
"""Largest part of a budget that the best proposal may miss it by before the aim is corrected."""

NUM_TIMINGS = 2
"""Every time is measured so often, some while apart; the shortest counts."""

PAIRED = ("kv_groups", "hidden")
"""Some configs refuse some numbers of these together."""


class Solved(NamedTuple):
    """The shape that a budget leads to."""

    num_kept: dict[str, int]
    """Of the kinds that are cut."""
    evidence: dict[str, Any]
    facts: dict[str, str | int | float]


class Question(NamedTuple):
    """A unit of work: what to propose shapes for."""

    cost: Cost
    losses: dict[str, Floats]
    target: float


def solve_budget(space: StageSpace, work: Work) -> Solved:
    """Find the shape with the least loss on the calibration text that keeps the recipe's budget.

    Raises:
        ValueError: the budget cannot be met, or the model meets it already.
    """
    limit = find_limit(work.options["budget"])
    state = partial(build_bench, work)
    (answer,) = space.compute_units(survey, [0], state, group="survey")
    seen = json.loads(answer)
    ranked = read_ranked(seen)
    room = Room(seen["num_units"], {kind: tuple(n) for kind, n in seen["choices"].items()})
    cost = Cost(room, seen["corners"])

    tried = [room.num_units, *room.levels()]
    nats = measure(space, state, ranked, tried, "sensitivity")
    losses = {}
    for kind, choices in room.choices.items():
        all_tried = zip(tried, nats, strict=True)
        rises = {t[kind]: n - nats[0] for t, n in all_tried if t[kind] < room.num_units[kind]}
        losses[kind] = interpolate_rise(choices, {room.num_units[kind]: 0.0} | rises)
    target, finalists = limit.asked, []
    for number in range(MAX_PROPOSALS):
        question = Question(cost, losses, target)
        (answer,) = space.compute_units(propose, [question], state, group=f"proposal{number}")
        proposed = json.loads(answer)
        if not proposed:
            break
        shapes = [shape["num_kept"] for shape in proposed]
        measured = measure(space, state, ranked, shapes, f"proposed{number}")
        finalists += [
            shape | {"nats_per_token": n} for shape, n in zip(proposed, measured, strict=True)
        ]
        aim = limit.asked / proposed[0]["cost"]
        if limit.name != "latency_ms" or abs(aim - 1) < MAX_MISS:
            break
        target *= aim
    fitting = [shape for shape in finalists if shape["cost"] <= limit.asked]
    if not fitting:
        nearest = min((shape["cost"] for shape in finalists), default=seen["smallest"])
        raise ValueError(
            f"budget: asked for {limit}, the nearest shape found takes {nearest:,.10g}; "
            "ask for that or more, or let more kinds be cut"
        )
    best = min(fitting, key=lambda shape: shape["nats_per_token"])
    evidence = {
        "asked": {limit.name: limit.asked},
        "dense": seen["dense"],
        "smallest": seen["smallest"],
        "sensitivities": [
            {"num_kept": t, "nats_per_token": n} for t, n in zip(tried, nats, strict=True)
        ],
        "finalists": finalists,
        "chosen": best["num_kept"],
    }
    facts = {
        "budget": str(limit),
        f"{limit.name}_dense": seen["dense"],
        f"{limit.name}_got": best["cost"],
    }
    if limit.name == "latency_ms":
        facts["latency_protocol"] = seen["protocol"]
    cut = {kind: n for kind, n in best["num_kept"].items() if n < room.num_units[kind]}
    return Solved(cut, evidence, facts)


def measure(
    space: StageSpace, state: Any, ranked: Ranked, shapes: list[dict[str, int]], group: str
) -> list[float]:
    """Return the loss of the criterion's choice of each shape, in nats/token."""
    units = [ranked.cut(shape) for shape in shapes]
    return [json.loads(a) for a in space.compute_units(measure_choice, units, state, group=group)]


def survey(bench: Bench, _unit: int) -> bytes:
    """Look at what can be cut; return JSON."""
    options, model = bench.work.options, bench.model
    limit, remote = find_limit(options["budget"]), options["trust_remote_code"]
    _, kinds = find_budget_groups(model, options["budget"], remote)
    room = find_room(model, bench.groups, kinds, options["alignment"])
    *corners, dense = measure_costs(bench, limit, [*room.corners(), room.num_units])
    if limit.name == "latency_ms":
        corners = increasing_cost(room, corners).corners
    check_limit(limit, room, corners[0], dense)
    return json.dumps(
        rank_units(bench)
        | {
            "num_units": room.num_units,
            "choices": room.choices,
            "corners": corners,
            "smallest": corners[0],
            "dense": dense,
            "protocol": f"{read_protocol(options)}; the shorter of {NUM_TIMINGS} such timings",
        }
    ).encode()


def measure_costs(bench: Bench, limit: Limit, shapes: list[dict[str, int]]) -> list[float]:
    """Return what shapes cost: counted, or timed on this worker."""
    model, groups, options = bench.model, bench.groups, bench.work.options
    remote = options["trust_remote_code"]
    if limit.name != "latency_ms":
        return [limit.cost(count_parameters(model, groups, shape, remote)) for shape in shapes]
    protocol = read_protocol(options)
    timings = [
        [time_shape(model, groups, shape, protocol, remote) for shape in shapes]
        for _ in range(NUM_TIMINGS)
    ]
    return [round(min(times), 4) for times in zip(*timings, strict=True)]


def read_protocol(options: dict[str, Any]) -> Protocol:
    return Protocol(options["budget"]["batch"], options["budget"]["tokens"])


def propose(bench: Bench, question: Question) -> bytes:
    """Find the shapes to measure; return JSON, each with what it really costs."""
    limit = find_limit(bench.work.options["budget"])
    remote, room = bench.work.options["trust_remote_code"], question.cost.room
    refused: list[dict[str, int]] = []
    proven: list[dict[str, int]] = []
    while not proven:
        finalists = find_finalists(room, question.cost, question.losses, question.target, refused)
        if not finalists:
            break
        for shape in finalists:
            try:
                prove_shape(bench.model, bench.groups, shape, remote)
                proven.append(shape)
            except ValueError:
                refused.append({kind: shape[kind] for kind in PAIRED if kind in shape})
    return json.dumps(
        [
            {
                "num_kept": shape,
                "cost": cost,
                "predicted_rise": float(predict_loss(room, question.losses, shape)[0]),
            }
            for shape, cost in zip(proven, measure_costs(bench, limit, proven), strict=True)
        ]
    ).encode()
