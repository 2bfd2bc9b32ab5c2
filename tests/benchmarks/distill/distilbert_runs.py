"""The runs that distilbert compares: ways to make a student of half the layers, as recipes.

All runs of a seed learn from the same rows, for as many steps.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from infra.storage import FileStore
from tasks.evaluate.items import read_items
from tasks.quality_records import TaskScore
from tests.benchmarks.cells import Cell
from tests.benchmarks.distill.scale import Scale
from tests.benchmarks.distill.sst2 import MAX_TOKENS, Row, Rows, fine_tune, write_rows
from tests.integration.pipeline import Workplace

BATCH_BLOCKS = 32
TIMEOUT_S = 7200

CROSS_ENTROPY = {"name": "cross_entropy", "weight": 2.0}
FORWARD_KL = {"name": "forward_kl", "weight": 5.0, "options": {"temperature": 2.0}}
LOGIT_MSE = {"name": "logit_mse", "weight": 5.0}
HIDDEN = {"name": "hidden_cosine", "weight": 1.0}
LOSSES = {
    "triple loss": [FORWARD_KL, CROSS_ENTROPY, HIDDEN],
    "labels alone": [CROSS_ENTROPY],
    "triple loss, logit MSE for KL": [LOGIT_MSE, CROSS_ENTROPY, HIDDEN],
}
"""With the weights of DistilBERT's code."""
INITIALIZERS = {"every other layer": "every_nth_layer", "first layers": "first_layers"}
"""A student that is neither begins with random weights."""


class Way(NamedTuple):
    student: str
    """Where its weights come from."""
    losses: str


class Bench(NamedTuple):
    folder: Path
    rows: Rows
    scale: Scale


def make_models(bench: Bench) -> None:
    """Write the fine-tuned teacher, and a model with random weights in the students' shape."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    teacher, shape = bench.folder / "teacher", bench.folder / "random"
    bench.folder.mkdir(parents=True, exist_ok=True)
    if not teacher.is_dir():
        fine_tune(bench.rows.training[: bench.scale.distilbert_teacher_rows], teacher)
    if not shape.is_dir():
        config = AutoConfig.from_pretrained(teacher, local_files_only=True)
        config.num_hidden_layers //= 2
        AutoTokenizer.from_pretrained(teacher, local_files_only=True).save_pretrained(shape)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(shape)


def run_pilot(bench: Bench, way: Way, rate: float) -> Cell:
    """Train on fewer rows, and judge by training rows that are held out."""
    return run_recipe(bench, way, rate, "pilot", bench.scale.distilbert_pilot_rows, "held_out")


def run_way(bench: Bench, way: Way, rate: float, seed: int) -> Cell:
    return run_recipe(bench, way, rate, seed, bench.scale.distilbert_rows, "dev")


def run_recipe(
    bench: Bench, way: Way, rate: float, draw: int | str, num_rows: int, judged_by: str
) -> Cell:
    """Run one recipe; stages that it shares with others are found in their common store.

    Args:
        draw: Names what is drawn of the training rows; a number is the recipe's seed, too.
        judged_by: `dev` or `held_out`.
    """
    folder = bench.folder / "runs"
    folder.mkdir(exist_ok=True)
    drawn = random.Random(f"rows {draw}").sample(bench.rows.training, num_rows)
    judging: list[Row] = getattr(bench.rows, judged_by)
    path = folder / "recipe.yaml"
    recipe = make_recipe(
        way,
        rate,
        draw if isinstance(draw, int) else 0,
        bench.folder,
        write_rows(folder / f"rows-{draw}.jsonl", drawn),
        write_rows(folder / f"{judged_by}.jsonl", judging),
        bench.scale.distilbert_passes * num_rows,
    )
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    record = Workplace(folder, timeout_s=TIMEOUT_S).run_json("run", path)
    models = {row["title"]: row for row in record["models"]}
    teacher, student = models["teacher"], models["full"]
    store = FileStore(record["store_uri"])
    seconds = {stage["title"]: stage["seconds"] for stage in record["stages"]}
    return {
        "teacher": right(store, teacher),
        "student": right(store, student),
        "rate": rate,
        "nats": student["metrics"]["nats_per_token"],
        "seconds": seconds["1 distill"],
        "layers_kept": models["1 distill"]["model"]["facts"].get("layers_kept", "none"),
        "parameters": [model["model"]["num_parameters"] for model in (teacher, student)],
        "bytes": [model["model"]["num_bytes"] for model in (teacher, student)],
        "embeddings": count_embeddings(bench.folder / "teacher"),
    }


def count_embeddings(folder: Path) -> int:
    """Return how many parameters are embeddings of tokens, positions and token types."""
    config = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "max_position_embeddings", "type_vocab_size")
    return int(config["hidden_size"] * sum(config[size] for size in sizes))


def right(store: FileStore, model: dict[str, Any]) -> str:
    """Return 1 for each row whose label a model gave, else 0."""
    items = read_items(store, TaskScore(**model["metrics"]["tasks"]["sst2"]))
    return "".join("01"[a == b] for a, b in zip(items.gold, items.predicted, strict=True))


def make_recipe(
    way: Way, rate: float, seed: int, models: Path, rows: Path, judging: Path, num_seen: int
) -> dict[str, Any]:
    """Args: num_seen: Rows that the student is shown, over again where there are fewer."""
    initializer = INITIALIZERS.get(way.student, "fresh")
    shape = {"student": {"model": str(models / "random")}} if initializer == "fresh" else {}
    distill = {
        "initializer": {"name": initializer},
        "losses": LOSSES[way.losses],
        "num_tokens": num_seen * MAX_TOKENS,
        "batch_blocks": BATCH_BLOCKS,
        "micro_batch_blocks": BATCH_BLOCKS // 2,
        "learning_rate": rate,
        "warmup": 0.1,
        "checkpoint_steps": 200,
    }
    return {
        "name": "distilbert",
        "seed": seed,
        "teacher": {"model": str(models / "teacher")},
        "calibration": {"text": str(rows)},
        "evaluation": {
            "text": str(judging),
            "window": MAX_TOKENS,
            "tasks": [{"name": "sst2", "data": str(judging)}],
        },
        "corpus": {
            "sources": [{"name": "local_text", "options": {"path": str(rows)}}],
            "block_tokens": MAX_TOKENS,
        },
        "steps": [{"distill": distill | shape}],
        "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
        "cluster": {"workers": 2},
    }
