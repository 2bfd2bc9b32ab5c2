"""Wall time per core until the sweep's regression predicts as well as the plain way's.

The plain way: each unit is kept by itself with the density as its probability, masks are
multiplied in, the whole forward pass is run for each, on one set of windows, nothing is
repaired. Both ways use the same regression with the same prior; both are held against the same
sub-models, drawn and scored in the plain way.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from tasks.prune.bench import Bench
from tasks.prune.loss import measure_loss
from tasks.prune.pruning import look
from tasks.prune.sweep.learning import FFN_SPREADS
from tasks.prune.sweep.regression import fit_utilities
from tasks.prune.sweep.sweep import Choice, cut_units, list_submodels, score_unit
from tasks.prune.units.masking import masked
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.staging import build_subject_bench, stage_options
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

Array = NDArray[np.float64]
DENSITIES = (0.5, 0.9)
SEED = 0
SWEEP = {
    "repair": False,
    "sampling": "independent",
    "windows_per_submodel": 1,
    "submodels_per_unit": 50,
}
"""The regression learns more from many sub-models on few windows than from the reverse."""


class Measured(NamedTuple):
    masks: Array
    """[num_submodels, num_units]"""
    utilities: Array
    """Negative nats/token."""
    seconds: float


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "throughput", scale.name)
    rows = []
    for subject in subjects:
        for density in DENSITIES:
            cell = cells.compute(
                subject.name,
                density,
                measure=lambda s=subject, d=density: measure_density(s, d, scale),
            )
            plain, ours = cell["plain"], cell["ours"]
            for name, found in (("plain", plain), ("ours", ours)):
                rows.append(
                    [
                        subject.name,
                        str(density),
                        name,
                        str(found["submodels"]),
                        f"{found['seconds']:.1f}",
                        f"{found['tau']:.3f}",
                        f"{found['r_squared']:.3f}",
                        f"{found['seconds'] / plain['seconds']:.3f}"
                        if found["reached"]
                        else "not reached",
                    ]
                )
    header = ["model", "density", "way", "sub-models", "seconds", "tau", "R^2", "of plain's time"]
    title = f"one core, seed {SEED}, {scale.heldout_masks} held-out sub-models"
    return [table(title, header, rows)]


def measure_density(subject: Subject, density: float, scale: Scale) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        percent = 50
        chosen = SWEEP | {"num_submodels": scale.most_submodels}
        stage = stage_options(subject, percent, chosen, SEED, scale, scratch)
        bench = build_subject_bench(stage, scratch)
        seen = json.loads(look(bench, 0))
        prior = [np.array(scores) for scores in seen["importance"]]
        ids = bench.ids_WS[: scale.utility_windows]
        held_out = score_plainly(bench, density, scale.heldout_masks, ids, seed=1)
        plain = score_plainly(bench, density, scale.plain_masks, ids, seed=2)
        began = time.perf_counter()
        fitted = fit_utilities(
            plain.masks,
            plain.utilities,
            np.zeros(len(plain.masks), dtype=np.int64),
            np.concatenate(prior),
            spreads_of(bench, seen),
        )
        plain_seconds = plain.seconds + time.perf_counter() - began
        goal = judge(fitted.weights, held_out)
        num_kept = [max(round(density * len(scores)), 1) for scores in prior]
        aim = Choice(prior, num_kept, [False] * len(prior), "independent")
        ours = sweep_until(bench, aim, seen, held_out, goal)
        return {
            "plain": goal
            | {"submodels": len(plain.masks), "seconds": plain_seconds, "reached": True},
            "ours": ours,
        }


def score_plainly(
    bench: Bench, density: float, number: int, ids_WS: torch.Tensor, seed: int
) -> Measured:
    rng = np.random.default_rng([SEED, seed])
    rows, utilities = [], []
    began = time.perf_counter()
    for _ in range(number):
        kept = [rng.random(s.num_units) < density for s in bench.groups]
        with masked(bench.model, bench.groups, kept):
            utilities.append(-measure_loss(bench.model, ids_WS))
        rows.append(np.concatenate(kept).astype(float))
    return Measured(np.array(rows), np.array(utilities), time.perf_counter() - began)


def spreads_of(bench: Bench, seen: dict[str, Any]) -> list[Array]:
    """Return the product's own scales of what a unit may contribute."""
    sizes = [s.num_units for s in bench.groups]
    spread = np.repeat(np.sqrt(seen["parameters_per_unit"]), sizes)
    is_ffn = np.repeat([kind == "ffn" for kind in seen["kinds"]], sizes)
    return [np.where(is_ffn, factor * spread, spread) for factor in FFN_SPREADS]


def judge(weights: Array, held_out: Measured) -> dict[str, float]:
    """Hold predictions against held-out utilities, each relative to its mean."""
    predicted = held_out.masks @ weights
    predicted = predicted - predicted.mean()
    measured = held_out.utilities - held_out.utilities.mean()
    residual = ((measured - predicted) ** 2).sum() / (measured**2).sum()
    tau = float(np.nan_to_num(kendalltau(predicted, measured)[0]))
    return {"tau": tau, "r_squared": float(1 - residual)}


def sweep_until(
    bench: Bench, aim: Choice, seen: dict[str, Any], held_out: Measured, goal: dict[str, float]
) -> dict[str, Any]:
    """Score units of work until tau and R^2 are the goal's, or all are scored.

    The fit is tried each time when there is a tenth more to fit; the last one's time counts.
    """
    units = cut_units(aim, bench.work.options)
    rows: list[Array] = []
    utilities: list[float] = []
    groups: list[int] = []
    seconds, next_fit = 0.0, 1.0
    for number, unit in enumerate(units, start=1):
        submodels = list_submodels(unit, bench.work.options["seed"])
        began = time.perf_counter()
        utilities += json.loads(score_unit(bench, unit))
        seconds += time.perf_counter() - began
        rows += [np.concatenate(kept).astype(float) for kept in submodels]
        groups += [number] * len(submodels)
        if number < min(next_fit, len(units)):
            continue
        next_fit = 1.1 * number
        began = time.perf_counter()
        fitted = fit_utilities(
            np.array(rows),
            np.array(utilities),
            np.array(groups),
            np.concatenate(aim.importance),
            spreads_of(bench, seen),
        )
        fit_seconds = time.perf_counter() - began
        found = judge(fitted.weights, held_out)
        reached = found["tau"] >= goal["tau"] and found["r_squared"] >= goal["r_squared"]
        if reached:
            break
    return found | {"submodels": len(rows), "seconds": seconds + fit_seconds, "reached": reached}
