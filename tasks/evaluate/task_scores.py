"""Score a model on the recipe's tasks, and keep what it said of each item for the gate to pair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tasks.evaluate.items import Items, score_items
from tasks.evaluate.lm_eval_tasks import ItemScores, run_lm_eval
from tasks.evaluate.row_scoring import Judgement, LabelledFile, judge_files
from tasks.quality_records import TaskScore
from tasks.records import DataRef, ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def score_tasks(
    space: StageSpace,
    options: dict[str, Any],
    model: ModelRef,
    data: dict[str, TextRef | DataRef],
) -> dict[str, TaskScore]:
    """Return the scores of all tasks by name, in the recipe's order.

    Writes `tasks/<name>.json`, an `Items`, for each.

    Args:
        data: What the tasks read, by their names.

    Raises:
        ValueError: the model cannot do a task.
    """
    tasks: list[dict[str, Any]] = options["tasks"]
    named, labelled = partition(tasks)
    files = [LabelledFile(data[task["name"]].uri, task) for task in labelled]
    judged = judge_files(space, options, model, files, group="rows") if files else []
    found = {
        task["name"]: label_items(task, judgement, data[task["name"]].digest, options["window"])
        for task, judgement in zip(labelled, judged, strict=True)
    }
    asked = run_lm_eval(space, options, model, named, data) if named else []
    found |= {
        t["name"]: harness_items(t, scored, options) for t, scored in zip(named, asked, strict=True)
    }
    return {task["name"]: write_score(space, task["name"], *found[task["name"]]) for task in tasks}


def partition(tasks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the harness's tasks, and the labelled ones."""
    return [t for t in tasks if "lm_eval" in t], [t for t in tasks if "lm_eval" not in t]


def label_items(
    task: dict[str, Any], judged: Judgement, digest: str, window: int
) -> tuple[Items, str, int]:
    """Return the evidence, the protocol, and how many items were cut."""
    said = (
        "the likeliest verbalizer by summed log-likelihood, not normalised for length"
        if task["verbalizers"]
        else "the head's output"
    )
    protocol = f"{said}; cut to {window} tokens; data {digest[:12]}"
    items = Items(task["metrics"], digest, judged.gold, judged.predicted)
    return items, protocol, judged.num_cut


def harness_items(
    task: dict[str, Any], scored: ItemScores, options: dict[str, Any]
) -> tuple[Items, str, int]:
    """Return the same of a task of the harness. What is right or wrong becomes an accuracy."""
    protocol = (
        f"lm-eval {options['lm_eval']}, {task['lm_eval']} version {scored.version}, "
        f"{task['metric']}, {scored.num_fewshot}-shot, {len(scored.values)} items"
    )
    right_or_wrong = set(scored.values) <= {0.0, 1.0}
    metric = "accuracy" if right_or_wrong else "mean"
    items = Items([metric], scored.items, [1.0] * len(scored.values), scored.values)
    return items, protocol, 0


def write_score(
    space: StageSpace, name: str, items: Items, protocol: str, num_cut: int
) -> TaskScore:
    path = f"tasks/{name}.json"
    (space.out / "tasks").mkdir(exist_ok=True)
    (space.out / path).write_text(json.dumps(items._asdict()))
    scores = score_items(items)
    return TaskScore(
        score=sum(scores.values()) / len(scores),
        scores=scores,
        num_items=len(items.gold),
        num_cut=num_cut,
        protocol=f"{', '.join(items.metrics)} of {protocol}",
        items_uri=space.output_uri(path),
    )
