"""Output-first against input-first: how balanced the labels come out, and what a student learns."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.data import classifier
from tests.benchmarks.data.corpora import build, self_instruct
from tests.benchmarks.data.labelled_tasks import SEEDS, LabelledTask, draw, find_tasks
from tests.benchmarks.data.scale import Scale
from tests.benchmarks.data.students import ROWS, spread
from tests.benchmarks.data.writer import teach_writer
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

ORDERS = ("output_first", "input_first")


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("data", "order", scale.name)
    tables = []
    for task in find_tasks(scale)[:1]:
        rows = []
        for order in ORDERS:
            found = [
                cells.compute(
                    task.own_entry,
                    order,
                    seed,
                    measure=partial(measure, task, order, seed, subjects[-1], scale),
                )
                for seed in SEEDS[scale.name]
            ]
            rows.append([order.replace("_", "-"), *describe(task, found)])
        tables.append(
            table(
                f"{task.name}: {ROWS[scale.name]} generated rows asked for, by {subjects[-1].name} "
                f"fine-tuned; {classifier.describe()}; {len(SEEDS[scale.name])} seed(s)",
                [
                    "order",
                    "rows",
                    *(f"{label}, %" for label in task.labels),
                    "entropy, bits",
                    "least, bits",
                    "accuracy, %",
                    "spread",
                ],
                rows,
            )
        )
    if not tables:
        tables.append(table("not measured", ["why"], [["$NIGHTPRESS_BENCH_DATA is not set"]]))
    return tables


def describe(task: LabelledTask, cells: list[Cell]) -> list[str]:
    shares = np.array([[cell["outputs"].get(label, 0) for label in task.labels] for cell in cells])
    shares = shares / shares.sum(axis=1, keepdims=True)
    entropies = [-sum(p * math.log2(p) for p in row if p) for row in shares]
    return [
        f"{np.mean([sum(cell['outputs'].values()) for cell in cells]):.0f}",
        *(f"{100 * share:.1f}" for share in shares.mean(axis=0)),
        f"{np.mean(entropies):.3f}",
        f"{min(entropies):.3f}",
        *spread([100 * cell["accuracy"] for cell in cells]),
    ]


def measure(task: LabelledTask, order: str, seed: int, subject: Subject, scale: Scale) -> Cell:
    trial = draw(task, seed, scale)
    writer = teach_writer(trial, subject.folder, scale.name)
    source = self_instruct(trial, ROWS[scale.name], order)
    made = build(trial, writer, [source], examples=trial.examples())
    return {
        "outputs": made.corpus.outputs,
        "refused": made.corpus.refused,
        "accuracy": classifier.measure_accuracy(made.cases(), task.test),
    }
