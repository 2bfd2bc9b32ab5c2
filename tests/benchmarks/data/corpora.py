"""Corpora of a trial, made by the product's own flow with the workers in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from flows.make_corpus import make_corpus
from infra.local_executor import LocalExecutor
from infra.storage import FileStore, localize
from tasks.corpus.rows import Row
from tasks.corpus.shards import read_shard
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef
from tasks.stage import Stage, run_stage
from tests.benchmarks.data.labelled_tasks import Case, Trial


class Built(NamedTuple):
    corpus: CorpusRef
    rows: list[Row]

    def cases(self, source: str = "") -> list[Case]:
        """Return the rows of one source, or of all."""
        kept = [row for row in self.rows if row["source"].startswith(source)]
        return [{"text": row["text"], "output": row["output"] or ""} for row in kept]


def build(
    trial: Trial,
    teacher: Path,
    sources: list[dict[str, Any]],
    labels: list[dict[str, Any]] | None = None,
    filters: tuple[str, ...] = ("exact_dedup", "decontaminate"),
    **task: Any,
) -> Built:
    """Build a corpus; stages that an earlier call has completed are found stored.

    Args:
        task: Beside the labels, or instead of the trial's instruction.
    """
    whole = {"instruction": trial.task.instruction, "kind": "classification"}
    recipe_file = trial.folder / "recipe.yaml"
    recipe_file.write_text(
        json.dumps(
            {
                "name": "bench",
                "seed": trial.seed,
                "teacher": {"model": str(teacher)},
                "task": whole | {"labels": trial.task.labels} | task,
                "calibration": {"text": str(trial.path("gold"))},
                "evaluation": {"text": str(trial.path("test"))},
                "corpus": {
                    "sources": sources,
                    "generator": {"name": "teacher", "options": {"batch_prompts": 64}},
                    "labels": labels or [],
                    "filters": [{"name": name} for name in filters],
                    "block_tokens": 128,
                },
                "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
            }
        )
    )
    recipe, store = load_recipe(recipe_file), FileStore(f"file://{trial.folder}/store")

    def complete(title: str, stage: Stage, record_type: type[Any]) -> Any:
        done, _ = run_stage(
            stage, store, LocalExecutor(), lambda done, total: None, trial.folder / "scratch"
        )
        return record_type(**done.record)

    inputs = find_inputs(recipe, store)
    corpus = make_corpus(recipe, inputs, inputs.teacher, complete)
    shards = sorted((localize(store, corpus.uri) / "rows").glob("*.parquet"))
    return Built(corpus, [row for shard in shards for row in read_shard(shard)])


def local_text(path: Path) -> dict[str, Any]:
    return {"name": "local_text", "options": {"path": str(path)}}


def self_instruct(trial: Trial, num_rows: int, order: str) -> dict[str, Any]:
    """The trial's gold rows begin it: what is too much like one of them is refused."""
    options = {"num_rows": num_rows, "seeds": str(trial.path("gold")), "order": order}
    shape = {
        "num_examples": 0,
        "round_rows": 256,
        "max_rounds": 20,
        "max_tokens": trial.task.max_tokens,
    }
    return {"name": "self_instruct", "options": options | shape}
