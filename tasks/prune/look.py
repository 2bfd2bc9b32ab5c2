"""The look: the shape to cut to, round by round, and what the criterion says of every unit."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from tasks.plugins import load_plugin
from tasks.prune.shapes.schedule import schedule_rounds
from tasks.prune.shapes.stock_config import accepts_numbers
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.units import parameters_per_unit

if TYPE_CHECKING:
    from tasks.prune.bench import Bench


def look(bench: Bench, _unit: int) -> bytes:
    """Run the dense model; return JSON: the shape to cut to and the criterion's importance."""
    options, shape, groups = bench.work.options, bench.shape, bench.groups
    score = load_plugin("criterion", options["criterion"]["name"])
    rounds = schedule_rounds(
        shape.num_units,
        shape.num_kept,
        shape.choices,
        options["rounds"],
        partial(accepts_numbers, bench.model.config, groups),
    )
    to_keep = [rounds[0][group.kind] for group in groups]
    calibrated, nats = calibrate(bench.model, groups, bench.ids_WS, to_keep)
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
            "num_kept_per_group": [shape.num_kept[group.kind] for group in groups],
            "rounds": rounds,
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
