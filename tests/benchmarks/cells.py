"""Finished cells: one JSON file each, so that a benchmark that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tasks.code_version import code_version
from tests.benchmarks.subjects import ROOT

Cell = dict[str, Any]

CODE = {
    "data": (
        "tasks/corpus/building.py",
        "tasks/corpus/reading.py",
        "tasks/corpus/labelling.py",
        *(f"tasks/corpus/{kind}/*.py" for kind in ("sources", "generators", "labels", "filters")),
    ),
    "distill": ("tasks/distill/distillation.py", "tasks/distill/losses/*.py"),
    "prune": ("tasks/prune/pruning.py", "tasks/prune/criteria/*.py"),
    "quantize": ("tasks/quantize/quantization.py", "tasks/quantize/methods/*.py"),
    "service": ("flows/*.py",),
}
"""Per benchmark the files that, with all they import, decide its figures."""


@cache
def measured_code(benchmark: str) -> str:
    """Version of all code that a benchmark's stage can reach, its plugins included."""
    files = [path for pattern in CODE[benchmark] for path in sorted(ROOT.glob(pattern))]
    return code_version(files)[:12]


class Cells:
    """The finished cells of one part of a benchmark.

    Args:
        benchmark: A key of CODE.
        scale: `full` or `smoke`; each has cells of its own.
    """

    def __init__(self, benchmark: str, part: str, scale: str) -> None:
        self.benchmark = benchmark
        self.folder = ROOT / ".nightpress/bench" / f"{benchmark}-{scale}" / part

    def compute(self, *key: object, measure: Callable[[], Cell]) -> Cell:
        """Return the cell of a key, measured now unless it was before.

        A cell of older code is kept; remove its file to have it measured again.
        """
        path = self.folder / ("_".join(str(k).replace(" ", "-") for k in key) + ".json")
        code = measured_code(self.benchmark)
        if path.is_file():
            cell: Cell = json.loads(path.read_text())
            if cell["code"] != code:
                print(f"{path.relative_to(ROOT)} was measured with other code")
            return cell
        print("measuring", self.folder.name, *key, flush=True)
        cell = measure() | {"code": code}
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(cell, indent=1))
        unfinished.replace(path)
        return cell
