"""SST-2 for an encoder: rows apart by what they are for, and a teacher that is fine-tuned on some.

The encoder is MiniLM-L6 (Wang et al. 2020, arXiv 2002.10957), the folder that $NIGHTPRESS_MINILM
names.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from tests.benchmarks.distill.scale import Scale

LABELS = {0: "negative", 1: "positive"}
MAX_TOKENS = 64
"""Of a row, for every model."""
BATCH_ROWS = 32
LEARNING_RATE = 1e-4
ROWS_SORTED = 2048
"""That batches of rows of about one length are made of."""

Row = dict[str, Any]
"""`text` and `label`, 0 or 1."""


class Rows(NamedTuple):
    dev: list[Row]
    held_out: list[Row]
    """Training rows that no model is trained on."""
    training: list[Row]


NEEDED = {
    "NIGHTPRESS_MINILM": "a folder with MiniLM-L6, as transformers loads it",
    "NIGHTPRESS_BENCH_DATA": "a folder with data/labelled/sst2/train.jsonl and dev.jsonl",
}


def why_not() -> str | None:
    """Say what is missing; None where encoder and rows are there."""
    missing = [f"{name} to {what}" for name, what in NEEDED.items() if name not in os.environ]
    return f"set {', and '.join(missing)}" if missing else None


def minilm() -> Path:
    return Path(os.environ["NIGHTPRESS_MINILM"]).resolve()


def divide_rows(scale: Scale) -> Rows:
    """Return the rows, no text twice and none of the dev rows among the others."""
    folder = Path(os.environ["NIGHTPRESS_BENCH_DATA"]) / "data/labelled/sst2"
    dev = read_rows(folder / "dev.jsonl")
    seen = {row["text"] for row in dev}
    unseen = {row["text"]: row for row in read_rows(folder / "train.jsonl")}
    rest = [row for text, row in unseen.items() if text not in seen]
    random.Random(0).shuffle(rest)
    held_out = scale.distilbert_held_out_rows
    return Rows(dev[: scale.distilbert_dev_rows], rest[:held_out], rest[held_out:])


def read_rows(path: Path) -> list[Row]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{"text": row["text"].strip(), "label": row["label"]} for row in rows]


def write_rows(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fine_tune(rows: list[Row], folder: Path) -> None:
    """Train the whole encoder and a new head on the rows, once each, and save both.

    AdamW, linear warm-up over a tenth of the steps, then linear decay to zero.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        get_linear_schedule_with_warmup,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm(), local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm(),
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
        use_safetensors=True,
        local_files_only=True,
    ).train()
    batches = batch_by_length(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
    for batch in batches:
        inputs = encode(tokenizer, batch)
        labels = torch.tensor([row["label"] for row in batch])
        model(**inputs, labels=labels).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    unfinished = folder.with_suffix(".tmp")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.replace(folder)


def batch_by_length(rows: list[Row]) -> list[list[Row]]:
    """Return the rows in batches, in random order, each of rows that are about as long."""
    rng = random.Random(0)
    shuffled = rng.sample(rows, len(rows))
    batches = []
    for start in range(0, len(shuffled), ROWS_SORTED):
        part = sorted(shuffled[start : start + ROWS_SORTED], key=lambda row: len(row["text"]))
        batches += [part[at : at + BATCH_ROWS] for at in range(0, len(part), BATCH_ROWS)]
    rng.shuffle(batches)
    return batches


def encode(tokenizer: Any, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Return a model's inputs, [num_rows, longest]."""
    texts = [row["text"] for row in rows]
    encoded: dict[str, torch.Tensor] = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    return encoded
