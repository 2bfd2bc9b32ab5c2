"""Held-out loss against wall time on one core: what each method would hand over if stopped."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.models.checkpoint import load_model
from tasks.prune.criteria.bonsai import refine
from tasks.prune.sweep.sampling import choose_best
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.masking import masked
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.staging import build_subject_bench, run_prune, stage_options
from tests.benchmarks.prune.timeline import draw_curves
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import measure_folder, measure_heldout

PERCENT = 50
SEED = 0


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "over_time", scale.name)
    return [tabulate(cells, subject, scale) for subject in subjects]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    quickest = {"method": "criterion", "criterion": {"name": "activation_norm"}, "repair": False}
    budgets: list[tuple[str, dict[str, Any]]] = [
        ("activation norm alone", quickest),
        ("criterion alone", {"method": "criterion", "repair": False}),
        ("repair alone", {"method": "criterion"}),
        *((f"{number} sub-models", {"num_submodels": number}) for number in scale.budgets),
    ]
    ours = [
        cells.compute(
            subject.name,
            "ours",
            name,
            measure=lambda options=options: measure_budget(options, subject, scale),
        )
        | {"name": f"ours, {name}"}
        for name, options in budgets
    ]
    published = cells.compute(
        subject.name, "bonsai", measure=lambda: {"points": measure_bonsai(subject, scale)}
    )["points"]
    dense = measure_heldout(load_model(subject.folder), subject, scale.heldout_windows)
    curves = {
        "ours": [(point["seconds"], point["nats"] - dense) for point in ours],
        "bonsai": [(point["seconds"], point["nats"] - dense) for point in published],
    }
    draw_curves(cells.folder / f"{subject.name}.svg", subject.name, curves)
    reached = [point["seconds"] for point in ours if point["nats"] <= published[-1]["nats"]]
    share = f"{min(reached) / published[-1]['seconds']:.4f}" if reached else "never reached"
    rows = [
        [point["name"], f"{point['seconds']:.1f}", f"+{point['nats'] - dense:.3f}"]
        for point in [*ours, *published]
    ]
    rows.append(["time at which ours is at bonsai's last loss, of bonsai's time", share, ""])
    title = f"{subject.name}, {PERCENT}%: {ours[0]['shape']}; one core, seed {SEED}"
    return table(title, ["stopped after", "seconds", "increase"], rows)


def measure_budget(options: dict[str, Any], subject: Subject, scale: Scale) -> Cell:
    """Run the whole stage with one budget; the seconds contain the cut that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        smallest = min(options.get("num_submodels", 8), 8)
        chosen = {"submodels_per_unit": smallest} | options
        stage = stage_options(subject, PERCENT, chosen, SEED, scale, scratch)
        pruned = run_prune(stage, scratch)
        nats = measure_folder(pruned.folder, subject, scale.heldout_windows)
        shape = pruned.record.facts["shape"]
        return {"seconds": pruned.seconds, "nats": nats, "shape": shape}


def measure_bonsai(subject: Subject, scale: Scale) -> list[Cell]:
    """Return a point after the prior and after each round; scoring stops the clock."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        stage = stage_options(subject, PERCENT, {}, SEED, scale, scratch)
        began = time.perf_counter()
        bench = build_subject_bench(stage, scratch)
        num_kept = [subject.shapes[PERCENT][s.kind] for s in bench.sublayers]
        calibrated, _ = calibrate(bench.model, bench.sublayers, bench.ids_WS, num_kept)
        points, paused = [], 0.0
        rounds = refine(calibrated, **scale.bonsai, seed=SEED)
        for number, importance in enumerate(rounds):
            seconds = time.perf_counter() - began - paused
            kept = choose_best([np.array(scores) for scores in importance], num_kept)
            with masked(bench.model, bench.sublayers, kept):
                nats = measure_heldout(bench.model, subject, scale.heldout_windows)
            points.append({"name": f"bonsai, round {number}", "seconds": seconds, "nats": nats})
            paused = time.perf_counter() - began - seconds
        return points
