"""Run the product's own prune stage in this process."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from infra.storage import FileStore
from tasks.models.checkpoint import describe_model, load_model
from tasks.prune.bench import Bench, Work, build_bench
from tasks.prune_options import PruneOptions
from tasks.recipe import Recipe
from tasks.records import ModelRef, TextRef
from tasks.stage import Stage
from tasks.stages import prune_stage
from tests.benchmarks.prune.scale import Scale
from tests.benchmarks.subjects import WINDOW, Subject
from tests.benchmarks.workbench import make_space, rotate_text


class Pruned(NamedTuple):
    folder: Path
    record: ModelRef
    seconds: float
    evidence: dict[str, Any]


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
        Work(make_space(store, scratch, "prune").localizer, model.uri, text.uri, stage.options)
    )


def run_prune(stage: Stage, scratch: Path) -> Pruned:
    """Run the stage on an empty store below `scratch`, one unit of work after the other."""
    space = make_space(FileStore(f"file://{scratch / 'store'}"), scratch, "prune")
    module, _, function = stage.entry.partition(":")
    entry = getattr(importlib.import_module(module), function)
    load_model(Path(stage.inputs["model"].uri))  # imports are not the method's time
    began = time.perf_counter()
    record = entry(space, stage.options, **stage.inputs)
    seconds = time.perf_counter() - began
    evidence = json.loads(space.store.read(f"{space.prefix}/evidence.json"))
    return Pruned(space.out, record, seconds, evidence)
