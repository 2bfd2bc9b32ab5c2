"""Sub-models per second of two single-threaded Ray workers against one, and Ray's own share."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from infra.file_store import FileStore
from infra.ray_cluster import RayExecutor
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.sweep.sweep import Choice, SweepUnit, cut_units, score_unit
from tasks.prune.unit_statistics import measure_inputs
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.staging import build_subject_bench, stage_options
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import make_space

PERCENT = 50


class Timed(NamedTuple):
    """One unit of work on the machine's own clock, which all its processes share."""

    worker: int
    began_s: float
    ended_s: float
    submodels: int


def score_timed(bench: Bench, unit: SweepUnit) -> Timed:

    began = time.monotonic()
    score_unit(bench, unit)
    return Timed(os.getpid(), began, time.monotonic(), len(unit.submodels))


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "scaling", scale.name)
    rows = []
    for subject in subjects:
        found = [
            cells.compute(
                subject.name, number, measure=partial(measure_workers, subject, number, scale)
            )
            for number in (1, 2)
        ]
        for number, cell in zip((1, 2), found, strict=True):
            rows.append(
                [
                    subject.name,
                    str(number),
                    f"{cell['submodels_per_s']:.3f}",
                    f"{cell['submodels_per_s'] / found[0]['submodels_per_s']:.2f}",
                    f"{cell['unit_s']:.2f}",
                    f"{1000 * cell['between_units_s']:.1f}",
                ]
            )
    header = ["model", "workers", "sub-models/s", "against one", "unit, s", "between units, ms"]
    return [table(f"{PERCENT}%, steady state, one thread per worker", header, rows)]


def measure_workers(subject: Subject, num_workers: int, scale: Scale) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        size = scale.prune.get("submodels_per_unit", 8)
        chosen = {"num_submodels": scale.scaling_units * size}
        stage = stage_options(subject, PERCENT, chosen, 0, scale, scratch)
        bench = build_subject_bench(stage, scratch)
        norms, _ = measure_inputs(bench.model, bench.sublayers, bench.ids_WS[:2])
        importance = [
            norm.view(s.num_units, -1).sum(1).double().numpy()
            for s, norm in zip(bench.sublayers, norms, strict=True)
        ]
        num_kept = [subject.shapes[PERCENT][s.kind] for s in bench.sublayers]
        units = cut_units(Choice(importance, num_kept, [False] * len(num_kept)), stage.options)
        model, text = stage.inputs["model"], stage.inputs["calibration"]
        localizer = make_space(FileStore(f"file://{scratch}"), scratch, "prune").localizer
        work = Work(localizer, model.uri, text.uri, stage.options)
        executor = RayExecutor("local", num_workers, 0, 1, scratch)
        try:
            done = list(executor.map(score_timed, units, partial(build_bench, work)))
        finally:
            executor.close()
        return summarize(done, num_workers)


def summarize(done: list[Timed], num_workers: int) -> Cell:
    """Count while all workers are at work: from the last one's first unit to the first one's end.

    A unit that began before or ended after counts by its share of time.
    """
    by_worker: dict[int, list[Timed]] = {}
    for timed in sorted(done, key=lambda t: t.began_s):
        by_worker.setdefault(timed.worker, []).append(timed)
    assert len(by_worker) == num_workers, sorted(by_worker)
    first = max(units[0].began_s for units in by_worker.values())
    last = min(units[-1].ended_s for units in by_worker.values())
    count = 0.0
    for timed in done:
        shared = min(timed.ended_s, last) - max(timed.began_s, first)
        count += timed.submodels * max(shared, 0) / (timed.ended_s - timed.began_s)
    gaps = [
        after.began_s - before.ended_s
        for units in by_worker.values()
        for before, after in itertools.pairwise(units)
    ]
    return {
        "submodels_per_s": count / (last - first),
        "unit_s": statistics.mean(t.ended_s - t.began_s for t in done),
        "between_units_s": statistics.median(gaps),
        "units": len(done),
    }
