"""Held-out loss after the same distillation of every method's model: real runs of the command."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.subjects import WINDOW, Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import rotate_text
from tests.integration.pipeline import Workplace

PERCENT = 50
SEED = 0
TIMEOUT_S = 7200
NAMES = ("activation_norm", "bonsai", "taylor", "magnitude", "random")
ONLY = {"docs-lm": ("ours: repair alone", "activation_norm")}
"""Of a larger model, ours and the best without a repair. The sweep cuts there what the repair alone
cuts."""


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("prune", "recovery", scale.name)
    return [tabulate(cells, subject, scale) for subject in subjects]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    methods: dict[str, dict[str, Any]] = {
        "ours: sweep + repair": {},
        "ours: repair alone": {"method": "criterion"},
    }
    for name in NAMES:
        criterion = {"name": name, "options": scale.bonsai if name == "bonsai" else {}}
        methods[name] = {"method": "criterion", "criterion": criterion, "repair": False}
    rows = []
    for name in ONLY.get(subject.name, methods):
        options = methods[name]
        cell = cells.compute(
            subject.name, name, measure=partial(measure_method, subject, options, scale)
        )
        figures = (cell["pruned"], cell["distilled"], cell["distilled"] - cell["dense"])
        rows.append([name, *(f"{nats:.3f}" for nats in figures)])
    title = f"{subject.name}, {PERCENT}%: {cell['shape']}; dense {cell['dense']:.3f}; seed {SEED}"
    header = ["method", "pruned", f"after {scale.recovery_tokens:,} tokens", "increase over dense"]
    return table(title, header, rows)


def measure_method(subject: Subject, options: dict[str, Any], scale: Scale) -> Cell:
    """Run one recipe with a prune and a distill step; return what the run recorded."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder), timeout_s=TIMEOUT_S)
        recipe = write_recipe(subject, options, scale, Path(folder))
        record = place.run_json("run", recipe)
    nats = {row["title"]: row["metrics"]["nats_per_token"] for row in record["models"]}
    facts = {row["title"]: row["model"]["facts"] for row in record["models"]}
    return {
        "dense": nats["teacher"],
        "pruned": nats["1 prune"],
        "distilled": nats["2 distill"],
        "shape": facts["1 prune"]["shape"],
    }


def write_recipe(subject: Subject, options: dict[str, Any], scale: Scale, folder: Path) -> Path:
    prune = {"sparsity": subject.sparsity(PERCENT), "allow_rounding": True} | scale.prune | options
    distill = {
        "losses": [
            {"name": "forward_kl", "weight": 0.8, "options": {"temperature": 2.0}},
            {"name": "cross_entropy", "weight": 0.2},
        ],
        "num_tokens": scale.recovery_tokens,
        "learning_rate": 1e-3,
    }
    recipe = {
        "name": "recovery",
        "seed": SEED,
        "teacher": {"model": str(subject.folder)},
        "calibration": {
            "text": str(rotate_text(subject, SEED, folder)),
            "num_windows": scale.num_windows,
            "window": WINDOW,
        },
        "evaluation": {"text": str(subject.heldout), "window": WINDOW},
        "corpus": {
            "sources": [{"name": "local_text", "options": {"path": str(subject.training)}}],
            "block_tokens": WINDOW,
        },
        "steps": [{"prune": prune}, {"distill": distill}],
        "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    return path
