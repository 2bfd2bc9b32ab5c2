"""Peak memory of a worker against the model's bytes and one backward pass of `taylor`."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.memory_models import BLOCK_7B, HALF_B
from tests.benchmarks.prune.scale import FULL, Scale
from tests.benchmarks.subjects import ROOT, Subject
from tests.benchmarks.tables import Table, table

TASKS = ("sweep", "taylor")
"""Of the models with text; random ones have these and others."""


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "memory", scale.name)
    rows = []
    todo = [(subject.name, task) for subject in subjects for task in TASKS]
    todo += [(HALF_B, task) for task in (*TASKS, "streamed sweep")]
    todo += [(BLOCK_7B, "repair")] if scale is FULL else []
    for name, task in todo:
        cell = cells.compute(name, task, measure=partial(measure_process, name, task, scale))
        above = cell["peak_bytes"] - cell["loaded_bytes"]
        rows.append(
            [
                name,
                task,
                mib(cell["model_bytes"]),
                mib(cell["loaded_bytes"]),
                mib(cell["peak_bytes"]),
                mib(above),
                f"{1 + above / cell['model_bytes']:.1f}",
                cell["work"],
            ]
        )
    header = ["model", "process", "model, MiB", "RSS with model, MiB", "peak RSS, MiB"]
    header += ["work itself, MiB", "with the model, in models", "work"]
    return [table("fp32, one thread, each in a process of its own", header, rows)]


def measure_process(name: str, task: str, scale: Scale) -> Cell:
    command = [sys.executable, "-m", "tests.benchmarks.prune.memory_process", name, task]
    command.append(scale.name)
    ran = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    cell: Cell = json.loads(ran.stdout.splitlines()[-1])
    return cell


def mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f}"
