"""What a night takes beside the stages' own work, against what Prefect takes to start.

Overhead is the command's wall time less the seconds inside the stages that it computed: imports,
preflight, Prefect's API, gate, load check, publication, report. Each round runs an empty flow and a
night in fresh state folders (Prefect makes its database), then both once more (it has one).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.service.nights import median_and_spread, run_night, timed
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

ALONE = (sys.executable, "-m", "tests.benchmarks.service.prefect_alone")
ALLOWED_S = {"all computed": 5.0, "all cached": 2.0}
"""Beyond Prefect's own start."""


def run(subjects: list[Subject], scale: Any) -> list[Table]:
    cells = Cells("service", "overhead", scale.name)
    rounds = [cells.compute("round", number, measure=measure) for number in range(scale.rounds)]
    rows = []
    for name, allowed in ALLOWED_S.items():
        nights = [cell[name] for cell in rounds]
        beyond = [night["overhead_s"] - night["prefect_s"] for night in nights]
        columns = [
            [night[key] for night in nights] for key in ("wall_s", "overhead_s", "prefect_s")
        ]
        figures = [median_and_spread(values) for values in [*columns, beyond]]
        rows.append([name, *figures, f"{allowed:g}"])
    header = ["night", "wall, s", "overhead, s", "Prefect alone, s", "beyond it, s", "target, s"]
    return [table("The quickstart's stages, made short, in a folder's store", header, rows)]


def measure() -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        state, empty = place / "state", place / "empty"
        empty.mkdir()
        cell = {}
        for name in ALLOWED_S:
            alone = timed(empty, *ALONE, empty, PREFECT_HOME=str(empty))
            night = run_night(state)
            cell[name] = {
                "prefect_s": alone.wall_s,
                "wall_s": night.wall_s,
                "overhead_s": night.wall_s - night.stages_s,
            }
        return cell
