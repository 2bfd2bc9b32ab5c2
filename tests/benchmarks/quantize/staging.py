"""Run the product's own quantize stage in this process, and score what comes out."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from infra.storage import FileStore
from tasks.models.checkpoint import describe_model, load_model
from tasks.prune.loss import loss_nats, predict
from tasks.quantize.checkpoint_tensors import stored_bytes
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.quantization import quantize_model
from tasks.recipe import Recipe
from tasks.recipe_resolution import resolve
from tasks.records import TextRef
from tasks.stages import quantize_stage
from tests.benchmarks.cells import Cell
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.subjects import WINDOW, Subject
from tests.benchmarks.workbench import heldout_windows, make_space, rotate_text


class Row(NamedTuple):
    """One line of a table: an export."""

    name: str
    method: str
    options: dict[str, Any]
    format: str = "compressed-tensors"
    dtype: str = "float16"
    """Of steps and of whatever stays unquantized."""
    mixed_bits: float | None = None
    """Mixed precision: the mean of what a weight may take, in bits."""


class Interval(NamedTuple):
    """An increase in nats/token; its ends are 1.96 standard errors over the windows away."""

    mean: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.lower:+.4f} to {self.upper:+.4f})"


def paired_increase(nats: list[float], reference: list[float]) -> Interval:
    """Compare two models window by window."""
    difference = np.array(nats) - np.array(reference)
    error = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    mean = float(difference.mean())
    return Interval(mean, mean - error, mean + error)


def score_windows(model: Any, subject: Subject, scale: Scale) -> list[float]:
    """Return held-out nats/token, window by window."""
    ids = heldout_windows(subject.folder, subject.heldout, scale.heldout_windows)
    nats: NDArray[np.float64] = np.array(
        [
            loss_nats(logits[index : index + 1], batch[index : index + 1])
            for batch, logits in predict(model, ids)
            for index in range(len(batch))
        ]
    )
    assert np.isfinite(nats).all()
    return [float(value) for value in nats]


def make_recipe(subject: Subject, row: Row, scale: Scale, text: Path) -> Recipe:
    """Return the recipe whose only export is the row."""
    mixed = None
    if row.mixed_bits:
        layout = find_layout(subject.folder, trust_remote_code=False)
        shapes = {name: shape for block in layout.blocks for name, shape in block.items()}
        rest = stored_bytes(subject.folder, getattr(torch, row.dtype), without=shapes)
        num_weights = sum(math.prod(shape) for shape in shapes.values())
        mixed = {"bytes": rest + int(num_weights * row.mixed_bits / 8)}
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "teacher": {"model": str(subject.folder)},
            "calibration": {"text": str(text), "num_windows": scale.num_windows, "window": WINDOW},
            "evaluation": {"text": str(subject.heldout), "window": WINDOW},
            "corpus": {"sources": [{"name": "local_text", "options": {"path": str(text)}}]},
            "steps": [{"prune": {"sparsity": 0.5}}],
            "exports": [
                {
                    "name": "row",
                    "method": row.method,
                    "options": row.options,
                    "format": row.format,
                    "dtype": row.dtype,
                    "mixed_precision": mixed,
                }
            ],
        }
    )
    return resolve(recipe, Path.cwd())


def measure_row(
    row: Row, subject: Subject, seed: int, scale: Scale, source: Path | None = None
) -> Cell:
    """Export a model, load what was written, and score it.

    Args:
        source: The model's folder; the subject's where it is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        text = rotate_text(subject, seed, scratch)
        recipe = make_recipe(subject, row, scale, text)
        model = describe_model(source or subject.folder, str(source or subject.folder))
        calibration = TextRef(uri=str(text), digest="", num_bytes=0)
        stage = quantize_stage(recipe, recipe.exports[0], model, calibration)
        space = make_space(FileStore(f"file://{scratch / 'store'}"), scratch, "quantize")
        began = time.perf_counter()
        record = quantize_model(space, stage.options, model=model, calibration=calibration)
        seconds = time.perf_counter() - began
        nats = score_windows(load_model(space.out, "float32"), subject, scale)
        return {
            "nats": nats,
            "seconds": seconds,
            "num_bytes": record.num_bytes,
            "facts": json.loads(json.dumps(record.facts)),
        }


def measure_dense(subject: Subject, scale: Scale, folder: Path | None = None) -> Cell:
    torch.manual_seed(0)
    source = folder or subject.folder
    nats = score_windows(load_model(source), subject, scale)
    return {"nats": nats, "num_bytes": 4 * describe_model(source, "x").num_parameters}
