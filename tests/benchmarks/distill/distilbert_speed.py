"""How much faster an encoder of half the layers classifies: one process, in turns, one thread.

Both models have random weights in MiniLM's shape: no time depends on what weights say.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.distill.sst2 import LABELS, MAX_TOKENS, divide_rows, encode, minilm, why_not
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

REPEATS = 7
BATCHES = (1, 32)


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    if reason := why_not():
        print(f"distilbert_speed is left out: {reason}")
        return []
    cells = Cells("distill", "distilbert_speed", scale.name)
    lines = []
    for rows in BATCHES:
        cell = cells.compute(rows, measure=partial(measure, rows, scale))
        ratios = [t / s for t, s in zip(cell["teacher"], cell["student"], strict=True)]
        speeds = [cell["num_rows"] / statistics.median(cell[n]) for n in ("teacher", "student")]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append([str(rows), *(f"{speed:.0f}" for speed in speeds), ratio])
    title = (
        f"{cell['num_rows']} dev rows of SST-2, at most {MAX_TOKENS} tokens, {cell['layers']} "
        f"layers against half of them; one thread, float32, {REPEATS} rounds in turns"
    )
    header = ["rows at once", "teacher, rows/s", "student, rows/s", "times as fast"]
    return [table(title, header, lines)]


def measure(rows_at_once: int, scale: Scale) -> Cell:
    """Time both models on all dev rows; return the seconds of each round."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm(), local_files_only=True)
    dev = divide_rows(scale).dev
    batches = [
        encode(tokenizer, dev[at : at + rows_at_once]) for at in range(0, len(dev), rows_at_once)
    ]
    config = AutoConfig.from_pretrained(minilm(), local_files_only=True, id2label=LABELS)
    layers = config.num_hidden_layers
    models = {}
    for name, kept in (("teacher", layers), ("student", layers // 2)):
        config.num_hidden_layers = kept
        models[name] = AutoModelForSequenceClassification.from_config(config).eval()
        classify(models[name], batches)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, model in models.items():
            began = time.perf_counter()
            classify(model, batches)
            seconds[name].append(time.perf_counter() - began)
    return {"num_rows": len(dev), "layers": layers, **seconds}


@torch.inference_mode()
def classify(model: Any, batches: list[dict[str, torch.Tensor]]) -> None:
    for inputs in batches:
        model(**inputs)
