"""`nightpress evaluate`: the evaluation stage on any model folder, in this process, unstored."""

from __future__ import annotations

import tempfile
from pathlib import Path

from flows.progress import make_reporter
from infra.local_executor import LocalExecutor
from infra.storage import open_store
from tasks.inputs import find_text
from tasks.models.checkpoint import describe_model
from tasks.records import Metrics
from tasks.stage import Stage, run_stage


def evaluate_folder(model: Path, text: Path, window: int, stride: int | None) -> Metrics:
    """Return the metrics of a model folder on a text.

    Raises:
        ValueError: model or text is missing, or the window is no positive number.
        CheckpointError: the model does not load.
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
        stage = Stage(
            name="evaluate",
            entry="tasks.evaluate.perplexity:evaluate_model",
            options={"window": window, "stride": stride or window, "trust_remote_code": False},
            inputs={
                "model": describe_model(model.resolve(), str(model.resolve())),
                "text": find_text("--text", str(text.resolve()), store),
            },
        )
        reporter.begin(f"evaluate {model.name}")
        try:
            completion, _ = run_stage(
                stage, store, LocalExecutor(), reporter.update, Path(folder) / "scratch"
            )
        finally:
            reporter.close()
    return Metrics(**completion.record)
