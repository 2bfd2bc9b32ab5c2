"""How much the model loses when one thing is cut: measured on repaired sub-models."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch

from tasks.plugins import load_plugin
from tasks.prune.bench import Bench
from tasks.prune.loss import measure_loss
from tasks.prune.repair.repair import SHARED, repair_submodels
from tasks.prune.sweep.sweep import Choice, choose_windows
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.masking import masked

WINDOWS_UNIT = 0
"""All sub-models are measured on the windows of the first unit of work, to be compared."""
SCORED = 4
"""One of so many calibration windows is scored on, if that is more than the sweep's sub-models
get: what is measured here is small, and decides for all that follows."""


class Ranked(NamedTuple):
    """Every unit's importance, whatever its kind, before it is known how many will stay."""

    choice: Choice
    kinds: list[str]
    """Of the groups."""
    dense_nats: float
    """On all calibration windows."""

    def cut(self, num_kept: dict[str, int]) -> Choice:
        """Return the criterion's choice of so many units of each kind."""
        return self.choice._replace(num_kept=[num_kept[kind] for kind in self.kinds])


def rank_units(bench: Bench) -> dict[str, Any]:
    """Ask the criterion about all groups, as if half of each were to go; JSON for `read_ranked`."""
    options, groups = bench.work.options, bench.groups
    half = [max(group.num_units // 2, group.least) for group in groups]
    calibrated, nats = calibrate(bench.model, groups, bench.ids_WS, half)
    criterion = options["criterion"]
    scores = load_plugin("criterion", criterion["name"])(calibrated, **criterion["options"])
    return {
        "importance": [importance.double().tolist() for importance in scores],
        "kinds": [group.kind for group in groups],
        "fixed": [group.kind in SHARED and options["repair"] for group in groups],
        "nats_per_token": nats,
    }


def read_ranked(seen: dict[str, Any]) -> Ranked:
    importance = [np.array(scores) for scores in seen["importance"]]
    whole = [len(scores) for scores in importance]
    return Ranked(
        Choice(importance, whole, seen["fixed"]), seen["kinds"], float(seen["nats_per_token"])
    )


def measure_choice(bench: Bench, choice: Choice) -> bytes:
    """Measure what is left when the criterion chooses.

    Returns:
        JSON: nats/token, repaired on other windows (without `refine`) where the recipe repairs.
    """
    options, kept = bench.work.options, choice.best()
    num_scored = max(options["windows_per_submodel"], len(bench.ids_WS) // SCORED)
    windows = choose_windows(WINDOWS_UNIT, len(bench.ids_WS), num_scored, options["seed"])
    score_ids, fit_ids = (bench.ids_WS[torch.from_numpy(chosen)] for chosen in windows)
    if options["repair"] and not all(mask.all() for mask in kept):
        _, (nats,) = repair_submodels(
            bench.model,
            bench.groups,
            bench.anatomy,
            [kept],
            fit_ids,
            score_ids,
            keep_weights=False,
        )
    else:
        with masked(bench.model, bench.groups, kept):
            nats = measure_loss(bench.model, score_ids)
    return json.dumps(nats).encode()
