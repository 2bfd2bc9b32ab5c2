"""Finished cells: one JSON file each, so that a benchmark that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tasks.code_version import code_version
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.subjects import ROOT

Cell = dict[str, Any]


@cache
def prune_code() -> str:
    """Version of all code that the prune stage can reach, its criteria included."""
    criteria = sorted((ROOT / "tasks/prune/criteria").glob("*.py"))
    return code_version([ROOT / "tasks/prune/pruning.py", *criteria])[:12]


class Cells:
    """The finished cells of one part of the benchmark."""

    def __init__(self, part: str, scale: Scale) -> None:
        self.folder = ROOT / ".nightpress/bench" / f"prune-{scale.name}" / part

    def compute(self, *key: object, measure: Callable[[], Cell]) -> Cell:
        """Return the cell of a key, measured now unless it was before.

        A cell of older code is kept; remove its file to have it measured again.
        """
        path = self.folder / ("_".join(str(k).replace(" ", "-") for k in key) + ".json")
        if path.is_file():
            cell: Cell = json.loads(path.read_text())
            if cell["code"] != prune_code():
                print(f"{path.relative_to(ROOT)} was measured with other code")
            return cell
        print("measuring", self.folder.name, *key, flush=True)
        cell = measure() | {"code": prune_code()}
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(cell, indent=1))
        unfinished.replace(path)
        return cell
