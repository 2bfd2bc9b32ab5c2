"""`nightpress evaluate`: the evaluation stage on any model folder, in this process, unstored."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from flows.progress import make_reporter
from infra.local_executor import LocalExecutor
from infra.storage import Store, open_store
from tasks.evaluate.labelled import name_labels
from tasks.evaluation_options import LabelledTask
from tasks.inputs import find_labelled, find_text
from tasks.models.checkpoint import describe_model
from tasks.models.folder import load_config
from tasks.models.model_kind import head_kind
from tasks.quality_records import Metrics
from tasks.records import Record, TextRef
from tasks.stage import Stage, run_stage


def evaluate_folder(
    model: Path, text: Path, window: int, stride: int | None, task: LabelledTask | None = None
) -> Metrics:
    """Return the metrics of a model folder on a text, and on a task where one is given.

    Raises:
        ValueError: model or text is missing, the window is no positive number, or the model
            cannot do the task.
        CheckpointError: the model does not load.
        CorpusError: a row is not one that the model can be scored on.
    """
    if window < 2 or (stride is not None and not 0 < stride <= window):
        raise ValueError(
            f"expected a window of at least 2 and a stride from 1 to it, got {window} and {stride}"
        )
    if not (model / "config.json").is_file():
        raise ValueError(f"MODEL: no config.json in {model}; expected a transformers model folder")
    reporter = make_reporter()
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        store = open_store(f"file://{folder}/store")
        described = describe_model(model.resolve(), str(model.resolve()))
        reads_rows = head_kind(described.architecture) == "sequence_classification"
        find_held_out = find_labelled if reads_rows else find_text
        inputs: dict[str, Record] = {
            "model": described,
            "text": find_held_out("--text", str(text.resolve()), store),
        }
        tasks: list[dict[str, Any]] = []
        if task:
            name_labels(task.model_dump(), load_config(model))
            inputs[f"task {task.name}"] = find_task_rows(task, store)
            tasks.append(task.model_dump(exclude={"data"}))
        stage = Stage(
            name="evaluate",
            entry="tasks.evaluate.evaluation:evaluate_model",
            options={
                "window": window,
                "stride": stride or window,
                "tasks": tasks,
                "latency": None,
                "trust_remote_code": False,
            },
            inputs=inputs,
        )
        reporter.begin(f"evaluate {model.name}")
        try:
            completion, _ = run_stage(
                stage, store, LocalExecutor(), reporter.update, Path(folder) / "scratch"
            )
        finally:
            reporter.close()
    return Metrics(**completion.record)


def find_task_rows(task: LabelledTask, store: Store) -> TextRef:
    return find_labelled("--data", str(Path(task.data).resolve()), store)


def make_task(
    data: Path, metrics: list[str], prompt: str | None, verbalizers: list[str]
) -> LabelledTask:
    """Return the task that the command line describes.

    Args:
        verbalizers: Each `LABEL=WORDS`.

    Raises:
        ValueError: they describe none.
    """
    pairs = [given.partition("=") for given in verbalizers]
    if wrong := [label for label, sign, _ in pairs if not sign]:
        raise ValueError(f"--verbalizer: expected LABEL=WORDS, got {wrong[0]!r}")
    said = {label: words for label, _, words in pairs}
    return LabelledTask.model_validate(
        {
            "name": "data",
            "data": str(data),
            "metrics": metrics or ["accuracy"],
            "prompt": prompt,
            "verbalizers": said or None,
        }
    )
