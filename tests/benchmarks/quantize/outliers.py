"""Outlier features, planted without changing the function: who collapses, and who does not."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from tasks.models.checkpoint import load_model, save_model
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.quantize.staging import Row, measure_dense, measure_row, paired_increase
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

NUM_FEATURES = 4
GAIN = 60.0
ROWS = (
    Row("absmax int8, per row", "absmax", {"bits": 8}),
    Row("vector-wise int8 (W8A8)", "vector_int8", {}),
    Row("LLM.int8()", "llm_int8", {}, "nightpress"),
    Row("GPTQ int8, per row", "gptq", {"bits": 8, "group_size": None}),
)


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("quantize", "outliers", scale.name)
    return [tabulate(cells, subject, scale) for subject in subjects]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    dense = cells.compute(subject.name, "dense", measure=partial(measure_dense, subject, scale))
    lines = []
    for row in ROWS:
        figures = []
        for planted in (False, True):
            cell = cells.compute(
                subject.name,
                row.name,
                "planted" if planted else "as it is",
                measure=partial(measure, row, subject, planted, scale),
            )
            figures.append(str(paired_increase(cell["nats"], dense["nats"])))
        lines.append([row.name, *figures])
    mean = statistics.mean(dense["nats"])
    title = (
        f"{subject.name}; fp32 {mean:.4f} nats/token; {NUM_FEATURES} features times {GAIN:g} in "
        "every norm, the next weights' columns divided by as much"
    )
    return table(title, ["export", "increase", "increase with planted outliers"], lines)


def measure(row: Row, subject: Subject, planted: bool, scale: Scale) -> Cell:
    if not planted:
        return measure_row(row, subject, 0, scale)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        model = load_model(subject.folder)
        plant_outliers(model)
        save_model(model, subject.folder, source)
        return measure_row(row, subject, 0, scale, source)


@torch.no_grad()
def plant_outliers(model: torch.nn.Module) -> None:
    """Scale the same features in all norms of the blocks, and undo it in the next weights."""
    for layer in model.model.layers:  # type: ignore[union-attr, operator]
        pairs = [
            (layer.input_layernorm, ("q_proj", "k_proj", "v_proj"), layer.self_attn),
            (layer.post_attention_layernorm, ("gate_proj", "up_proj"), layer.mlp),
        ]
        for norm, names, module in pairs:
            norm.weight[:NUM_FEATURES] *= GAIN
            for name in names:
                getattr(module, name).weight[:, :NUM_FEATURES] /= GAIN
