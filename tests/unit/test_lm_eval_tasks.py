"""Tasks of the lm-evaluation-harness from files of the user's own, with no network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional as F

from infra.local_executor import LocalExecutor
from infra.storage import open_store
from tasks.errors import CompressionError
from tasks.evaluate.items import read_items
from tasks.evaluate.task_files import check_task_files
from tasks.evaluation_options import LmEvalTask
from tasks.inputs import find_data, find_text
from tasks.models.checkpoint import describe_model, load_model
from tasks.quality_records import Metrics
from tasks.stage import Stage, run_stage

pytest.importorskip("lm_eval")

CHOICES = ["short plain sentences", "small numbers", "presses"]
TASK = {
    "task": "nights",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/items.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} The model learns to write",
    "doc_to_choice": CHOICES,
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 3.0},
}
ROWS = [{"text": f"Night {i}.", "label": i % 3} for i in range(7)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def write_task(folder: Path, **changes: Any) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (folder / "nights.yaml").write_text(yaml.safe_dump(TASK | changes, sort_keys=False))
    return folder


def evaluate(model: Path, text: Path, tmp_path: Path, task: LmEvalTask) -> tuple[Metrics, Any]:
    store = open_store(f"file://{tmp_path}/store")
    read = {f"task {task.name}": find_data("t", task.include, store)} if task.include else {}
    options = {"window": 32, "stride": 32, "latency": None, "trust_remote_code": False}
    stage = Stage(
        "evaluate",
        "tasks.evaluate.evaluation:evaluate_model",
        options | {"tasks": [task.model_dump(exclude={"include"})], "lm_eval": "0.4.13"},
        {
            "model": describe_model(model, str(model)),
            "text": find_text("t", str(text), store),
            **read,
        },
    )
    completion, _ = run_stage(
        stage, store, LocalExecutor(), lambda done, total: None, tmp_path / "scratch"
    )
    return Metrics(**completion.record), store


def test_a_local_task_is_scored_as_by_hand(
    tiny_llama: Path, text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "own")
    task = LmEvalTask(name="night", lm_eval="nights", limit=5, include=str(folder))
    metrics, store = evaluate(tiny_llama, text_file, tmp_path, task)
    score = metrics.tasks["night"]
    items = read_items(store, score)
    model = load_model(tiny_llama)

    def likelihood(text: str, choice: str) -> float:
        whole = f"{text} The model learns to write {choice}"
        ids = torch.tensor([tokenizer(whole).input_ids])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        return -float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))

    right = [
        max(range(3), key=lambda k: likelihood(row["text"], CHOICES[k])) == row["label"]
        for row in ROWS[:5]
    ]
    assert items.predicted == [float(r) for r in right] and items.gold == [1.0] * 5
    assert score.score == pytest.approx(sum(right) / 5)
    assert "nights version 3.0, acc, 0-shot, 5 items" in score.protocol


def test_what_the_harness_cannot_do_is_said(
    tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "own")
    other = LmEvalTask(name="x", lm_eval="nights", metric="f1", include=str(folder))
    with pytest.raises(CompressionError, match=r"got f1; the task has \['acc'\]"):
        evaluate(tiny_llama, text_file, tmp_path, other)
    outside = write_task(
        tmp_path / "outside", dataset_kwargs={"data_files": {"test": "../own/data/items.jsonl"}}
    )
    away = LmEvalTask(name="x", lm_eval="nights", include=str(outside))
    with pytest.raises(CompressionError, match="a task's data lies in the folder"):
        evaluate(tiny_llama, text_file, tmp_path, away)


def test_a_template_reaches_nothing_of_pythons(
    tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    hostile = "{{ text.__class__.__mro__[1].__subclasses__() }}"
    folder = write_task(tmp_path / "own", doc_to_text=hostile)
    task = LmEvalTask(name="x", lm_eval="nights", include=str(folder))
    with pytest.raises(CompressionError, match="SecurityError"):
        evaluate(tiny_llama, text_file, tmp_path, task)


@pytest.mark.parametrize(
    "line",
    [
        "doc_to_text: !function code.make",
        "%TAG !x! !func\n---\ndoc_to_text: !x!tion code.make",
        "doc_to_text: !!python/name:os.system",
        "metric_list: [{metric: made_up, hf_evaluate: true}]",
        "include: ../elsewhere.yaml",
    ],
)
def test_a_task_file_that_runs_code_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "task.yaml").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"runs Python code|which is not in|is not YAML"):
        check_task_files(tmp_path, "evaluation.tasks: x")
