"""Peak memory of a sweep worker against the model's bytes and one backward pass of `taylor`."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.subjects import ROOT, Subject
from tests.benchmarks.tables import Table, table

BIG = "random 0.5B Llama shape"
TASKS = ("sweep", "taylor")


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "memory", scale.name)
    rows = []
    for name in [*(subject.name for subject in subjects), BIG]:
        for task in TASKS:
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
