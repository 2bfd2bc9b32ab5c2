"""Held-out nats/row of a classifier or a regression: a labelled row is a document of one token."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tasks.evaluate.held_out import HeldOut
from tasks.evaluate.labelled import name_labels
from tasks.evaluate.predicting import encode_rows
from tasks.evaluate.row_scoring import LabelledFile, RowJudge, judge_files, row_judge
from tasks.evaluate.speed import measure_prefill
from tasks.models.folder import load_config
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

PROBE_ROWS = 4
"""Rows kept with their logits, for the load gate to hold a fresh process against."""
SPEED_ROWS = 256
"""Rows whose tokens are the batches that speed is measured on."""
HELD_OUT: dict[str, Any] = {
    "name": "text",
    "metrics": [],
    "labels": None,
    "prompt": None,
    "verbalizers": None,
}
"""The held-out rows as a `LabelledTask`."""


def score_held_out_rows(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef
) -> HeldOut:
    """Score a classifier on labelled rows.

    Raises:
        CorpusError: a row has no label that the model knows.
    """
    file = LabelledFile(text.uri, HELD_OUT)
    (judged,) = judge_files(space, options, model, [file], group="text")
    state = partial(row_judge, space.localizer, model.uri, [file], options)
    (alone,) = space.compute_units(
        measure_alone, [options["window"]], state, group="alone", num_workers=1
    )
    measured = json.loads(alone)
    classes = name_labels(HELD_OUT, load_config(space.local(model.uri)))
    what = "cross-entropy of its label" if classes else "squared error of its score"
    return HeldOut(
        nats=judged.nats,
        tokens=[1] * len(judged.nats),
        protocol=f"nats/row, the {what}; rows cut to {options['window']} tokens, {judged.num_cut} "
        "were",
        probe=measured["probe"],
        prefill=measured["prefill"],
    )


def measure_alone(judge: RowJudge, window: int) -> bytes:
    """Time full batches and keep the probe's logits; return JSON {prefill, probe}."""
    model, rows = judge.model, judge.files[0].rows
    inputs, _ = encode_rows(judge.tokenizer, rows[:PROBE_ROWS], window)
    with torch.inference_mode():
        logits = [
            model(**{k: torch.tensor([v[row]], device=model.device) for k, v in inputs.items()})
            .logits[0]
            .float()
            .tolist()
            for row in range(len(inputs["input_ids"]))
        ]
    probe = {
        "ids": inputs["input_ids"],
        "token_type_ids": inputs.get("token_type_ids", []),
        "logits": logits,
    }
    prefill = measure_prefill(model, text_ids(judge.tokenizer, rows[:SPEED_ROWS], window), window)
    return json.dumps({"prefill": prefill, "probe": probe}).encode()


def text_ids(tokenizer: Any, rows: list[Any], window: int) -> torch.Tensor:
    """Return the rows' tokens, joined, [num_tokens]."""
    inputs, _ = encode_rows(tokenizer, rows, window)
    return torch.tensor([token for ids in inputs["input_ids"] for token in ids])
