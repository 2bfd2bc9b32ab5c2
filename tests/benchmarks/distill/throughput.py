"""Where the time of a training goes: into the models' matrix products, or into all around them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.distill.throughput_process import CASES, LABELS
from tests.benchmarks.subjects import ROOT, Subject
from tests.benchmarks.tables import Table, table

TITLES = {
    "loss": "loss over logits, both heads' products in it",
    "step": "the loop itself",
    "optimizer": "clipping and optimizer",
}


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("distill", "throughput", scale.name)
    return [
        tabulate(name, cells.compute(name, measure=partial(measure_process, name, scale.name)))
        for name in CASES
    ]


def measure_process(name: str, scale_name: str) -> Cell:
    command = [sys.executable, "-m", "tests.benchmarks.distill.throughput_process"]
    ran = subprocess.run(
        [*command, name, scale_name], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    cell: Cell = json.loads(ran.stdout.splitlines()[-1])
    return cell


def tabulate(name: str, cell: Cell) -> Table:
    total = cell["seconds"]
    products = sum(seconds for label, seconds in cell.items() if label.endswith(": products"))
    rows = [
        [
            TITLES.get(label, label),
            f"{100 * cell[label] / total:.1f}",
            f"{100 * cell.get(f'{label}: products', 0) / total:.1f}",
        ]
        for label in LABELS
        if label in cell
    ]
    booked = sum(cell.get(label, 0) for label in LABELS)
    rows += [
        ["outside of all these", f"{100 * (total - booked) / total:.1f}", ""],
        ["**together**", "100.0", f"{100 * products / total:.1f}"],
    ]
    title = f"{name}: {cell['steps']:.0f} steps in {total:.1f} s, one thread a rank; rank 0"
    return table(title, ["part", "of the time, %", "of it in matrix products, %"], rows)
