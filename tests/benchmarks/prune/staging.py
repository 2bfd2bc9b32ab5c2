"""Run the product's own prune stage in this process, and score what comes out."""

from __future__ import annotations

import importlib
import json
import math
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.corpus.rows import read_rows
from tasks.corpus.text import tokenize_file
from tasks.models.checkpoint import describe_model, load_model, load_tokenizer
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune.loss import measure_loss
from tasks.prune_options import PruneOptions
from tasks.recipe import Recipe
from tasks.records import ModelRef, TextRef
from tasks.stage import Stage, StageSpace
from tasks.stages import prune_stage
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.prune.subjects import WINDOW, Subject

NUM_PARTS = 3
"""A seed begins at another third of the calibration text."""


class Pruned(NamedTuple):
    folder: Path
    record: ModelRef
    seconds: float
    evidence: dict[str, Any]


def rotate_text(subject: Subject, seed: int, scratch: Path) -> Path:
    """Write the calibration documents, beginning with another part for each seed."""
    path = scratch / f"{subject.name}-calibration-{seed}.jsonl"
    if not path.is_file():
        rows = list(read_rows(subject.calibration))
        first = len(rows) * (seed % NUM_PARTS) // NUM_PARTS
        lines = [json.dumps(row) + "\n" for row in rows[first:] + rows[:first]]
        path.write_text("".join(lines))
    return path


def stage_options(
    subject: Subject, percent: int, chosen: dict[str, Any], seed: int, scale: Scale, scratch: Path
) -> Stage:
    """Return the stage that a recipe with these prune options would run."""
    sparsity = {"sparsity": subject.sparsity(percent), "allow_rounding": True}
    options = PruneOptions(**sparsity | scale.prune | chosen)
    criterion = options.criterion.resolved("criterion")
    options = options.model_copy(update={"criterion": criterion})
    text = rotate_text(subject, seed, scratch)
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "seed": seed,
            "teacher": {"model": str(subject.folder)},
            "calibration": {
                "text": str(text),
                "num_windows": scale.num_windows,
                "window": WINDOW,
            },
            "evaluation": {"text": str(subject.heldout), "window": WINDOW},
            "corpus": {"sources": [{"name": "local_text", "options": {"path": str(text)}}]},
            "steps": [{"prune": options.model_dump()}],
            "exports": [
                {
                    "name": "aligned",
                    "method": "none",
                    "format": "safetensors",
                    "options": {"group_size": subject.alignment},
                }
            ],
        }
    )
    model = describe_model(subject.folder, str(subject.folder))
    return prune_stage(recipe, options, model, TextRef(uri=str(text), digest="", num_bytes=0))


def build_subject_bench(stage: Stage, scratch: Path) -> Bench:
    """Return what a worker of the stage starts from."""
    store = FileStore(f"file://{scratch}")
    model, text = stage.inputs["model"], stage.inputs["calibration"]
    return build_bench(
        Work(make_space(store, scratch).localizer, model.uri, text.uri, stage.options)
    )


def make_space(store: FileStore, scratch: Path) -> StageSpace:
    return StageSpace(
        store=store,
        executor=LocalExecutor(),
        prefix="stages/prune/bench",
        attempt="bench",
        scratch=scratch / "stage",
        progress=lambda done, total: None,
    )


def run_prune(stage: Stage, scratch: Path) -> Pruned:
    """Run the stage on an empty store below `scratch`, one unit of work after the other."""
    space = make_space(FileStore(f"file://{scratch / 'store'}"), scratch)
    module, _, function = stage.entry.partition(":")
    entry = getattr(importlib.import_module(module), function)
    load_model(Path(stage.inputs["model"].uri))  # imports are not the method's time
    began = time.perf_counter()
    record = entry(space, stage.options, **stage.inputs)
    seconds = time.perf_counter() - began
    evidence = json.loads(space.store.read(f"{space.prefix}/evidence.json"))
    return Pruned(space.out, record, seconds, evidence)


@cache
def heldout_windows(subject_folder: Path, text: Path, most: int | None) -> torch.Tensor:
    """Return the text's whole windows [num_windows, window]; documents are joined with BOS."""
    documents = tokenize_file(text, load_tokenizer(subject_folder))
    ids = torch.tensor([token for document in documents for token in document.ids])
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return windows[:most]


def measure_heldout(model: Any, subject: Subject, scale: Scale) -> float:
    """Return held-out nats/token; the first token of a window is not scored."""
    ids = heldout_windows(subject.folder, subject.heldout, scale.heldout_windows)
    nats = measure_loss(model, ids)
    assert math.isfinite(nats)
    return nats


def measure_folder(folder: Path, subject: Subject, scale: Scale) -> float:
    return measure_heldout(load_model(folder, "float32"), subject, scale)
