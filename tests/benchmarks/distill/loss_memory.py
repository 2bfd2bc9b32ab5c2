"""Memory and time of a loss and its gradients, against whole logits and liger-kernel's chunks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from functools import partial

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.distill.loss_process import MIXES, TEMPERATURE, WAYS
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.subjects import ROOT, Subject
from tests.benchmarks.tables import Table, table

TOLERANCE = 1e-4


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    """Measure every way once, then all once more: what disturbs the machine disturbs them all."""
    cells = Cells("distill", "loss_memory", scale.name)
    ways = [way for way in WAYS if "liger" not in way or "NIGHTPRESS_LIGER" in os.environ]
    if len(ways) < len(WAYS):
        print("NIGHTPRESS_LIGER names no folder with liger-kernel: its losses are left out")
    measured: dict[tuple[str, str], list[Cell]] = {}
    for repeat in range(scale.loss_repeats):
        for mix in MIXES:
            for way in ways:
                measure = partial(measure_process, way, mix, scale.name)
                cell = cells.compute(mix, way, repeat, measure=measure)
                measured.setdefault((mix, way), []).append(cell)
    return [tabulate(mix, ways, measured, scale) for mix in MIXES]


def measure_process(way: str, mix: str, scale_name: str) -> Cell:
    command = [sys.executable, "-m", "tests.benchmarks.distill.loss_process", way, mix, scale_name]
    ran = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    cell: Cell = json.loads(ran.stdout.splitlines()[-1])
    return cell


def tabulate(
    mix: str, ways: list[str], measured: dict[tuple[str, str], list[Cell]], scale: Scale
) -> Table:
    rows = []
    plain = measured[mix, "plain"]
    for way in ways:
        cells = measured[mix, way]
        for name in ("loss", "hidden_norm", "weight_norm"):
            assert abs(cells[0][name] / plain[0][name] - 1) < TOLERANCE, (way, name)
        seconds = [cell["cpu_seconds"] for cell in cells]
        rows.append(
            [
                way,
                f"{median(cells, 'above_bytes') / 2**20:,.0f}",
                f"1/{median(plain, 'above_bytes') / median(cells, 'above_bytes'):.1f}",
                f"{median(cells, 'cpu_seconds'):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
                f"{median(cells, 'cpu_seconds') / median(plain, 'cpu_seconds'):.2f}",
            ]
        )
    title = (
        f"{mix} at temperature {TEMPERATURE:g}: {scale.loss_tokens} tokens, "
        f"{scale.loss_vocab:,} logits, width {scale.loss_width}, float32, one thread, "
        f"{len(plain)} run(s)"
    )
    header = ["way", "peak above, MiB", "of plain", "CPU seconds (range)", "of plain's time"]
    return table(title, header, rows)


def median(cells: list[Cell], name: str) -> float:
    return statistics.median(cell[name] for cell in cells)
