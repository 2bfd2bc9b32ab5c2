"""What every benchmark of a stage needs: its text, a place to run it, and the held-out loss."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.corpus.rows import read_rows
from tasks.corpus.text import tokenize_file
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.prune.loss import measure_loss
from tasks.stage_space import StageSpace
from tests.benchmarks.subjects import WINDOW, Subject

NUM_PARTS = 3
"""A seed begins at another third of the calibration text."""


def rotate_text(subject: Subject, seed: int, scratch: Path) -> Path:
    """Write the calibration documents, beginning with another part for each seed."""
    path = scratch / f"{subject.name}-calibration-{seed}.jsonl"
    if not path.is_file():
        rows = list(read_rows(subject.calibration))
        first = len(rows) * (seed % NUM_PARTS) // NUM_PARTS
        lines = [json.dumps(row) + "\n" for row in rows[first:] + rows[:first]]
        path.write_text("".join(lines))
    return path


def make_space(store: FileStore, scratch: Path, stage: str) -> StageSpace:
    return StageSpace(
        store=store,
        executor=LocalExecutor(),
        prefix=f"stages/{stage}/bench",
        attempt="bench",
        scratch=scratch / "stage",
        progress=lambda done, total: None,
    )


@cache
def heldout_windows(subject_folder: Path, text: Path, most: int | None) -> torch.Tensor:
    """Return the text's whole windows [num_windows, window]; documents are joined with BOS."""
    documents = tokenize_file(text, load_tokenizer(subject_folder))
    ids = torch.tensor([token for document in documents for token in document.ids])
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    return windows[:most]


def measure_heldout(model: Any, subject: Subject, most: int | None) -> float:
    """Return held-out nats/token; the first token of a window is not scored.

    Args:
        most: Windows that are enough; None for all that the text fills.
    """
    ids = heldout_windows(subject.folder, subject.heldout, most)
    nats = measure_loss(model, ids)
    assert math.isfinite(nats)
    return nats


def measure_folder(folder: Path, subject: Subject, most: int | None) -> float:
    return measure_heldout(load_model(folder, "float32"), subject, most)
