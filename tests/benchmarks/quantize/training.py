"""Training through the rounding: what it brings back of what rounding loses; real runs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.subjects import WINDOW, Subject
from tests.benchmarks.tables import Table, table
from tests.integration.pipeline import Workplace

TIMEOUT_S = 7200
EXPORTS: dict[str, dict[str, Any]] = {
    "binary": {"method": "binary", "format": "nightpress"},
    "absmax int2, per row": {
        "method": "absmax",
        "options": {"bits": 2},
        "format": "compressed-tensors",
    },
}


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("quantize", "training", scale.name)
    return [tabulate(cells, subject, scale) for subject in subjects]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    cell = cells.compute(subject.name, measure=partial(measure, subject, scale))
    dense = cell["teacher"]
    lines = []
    for number, name in enumerate(EXPORTS):
        rounded, trained = cell[f"rounded-{number}"], cell[f"trained-{number}"]
        figures = [f"{nats:.3f} ({nats - dense:+.3f})" for nats in (rounded, trained)]
        lines.append([name, *figures, f"{(rounded - trained) / (rounded - dense):.0%}"])
    title = f"{subject.name}; fp32 {dense:.4f} nats/token; {scale.training_tokens:,} tokens"
    return table(title, ["export", "rounded", "trained, then rounded", "recovered"], lines)


def measure(subject: Subject, scale: Scale) -> Cell:
    """Run one recipe that exports each way with and without training."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder), timeout_s=TIMEOUT_S)
        record = place.run_json("run", write_recipe(subject, scale, Path(folder)))
    return {row["title"]: row["metrics"]["nats_per_token"] for row in record["models"]}


def write_recipe(subject: Subject, scale: Scale, folder: Path) -> Path:
    train = {
        "losses": [{"name": "forward_kl", "weight": 1.0, "options": {"temperature": 2.0}}],
        "num_tokens": scale.training_tokens,
        "batch_blocks": 8,
        "micro_batch_blocks": 4,
        "learning_rate": 1e-2,
    }
    exports = []
    for number, export in enumerate(EXPORTS.values()):
        exports.append(export | {"name": f"rounded-{number}"})
        exports.append(export | {"name": f"trained-{number}", "train": train})
    recipe = {
        "name": "training",
        "teacher": {"model": str(subject.folder)},
        "calibration": {"text": str(subject.calibration), "num_windows": 8, "window": WINDOW},
        "evaluation": {"text": str(subject.heldout), "window": WINDOW},
        "corpus": {
            "sources": [{"name": "local_text", "options": {"path": str(subject.training)}}],
            "block_tokens": WINDOW,
        },
        "exports": exports,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
