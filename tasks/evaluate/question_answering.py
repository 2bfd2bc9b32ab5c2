"""Held-out nats/row of a model that finds answers in a text: of where the answer starts and ends.

Rows are read and encoded as in training; what is no label there is not scored here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from tasks.corpus.examples import IGNORED, encode, find_span
from tasks.corpus.rows import make_row, read_rows
from tasks.errors import CorpusError
from tasks.evaluate.held_out import HeldOut
from tasks.evaluate.speed import measure_prefill
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

ROWS_PER_UNIT = 64
PROBE_ROWS = 4
SPEED_ROWS = 64


class Asked(NamedTuple):
    """One question as tokens."""

    inputs: dict[str, list[int]]
    """What the tokenizer names: input_ids, attention_mask, token_type_ids."""
    span: tuple[int, int]
    """The answer's first and last token, as `find_span` returns them."""


class Answerer(NamedTuple):
    """A worker's state."""

    model: Any
    asked: list[Asked]


def score_answers(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef
) -> HeldOut:
    """Score a model on questions with answers.

    Raises:
        CorpusError: a row is no question, its answer does not stand where it says, or the question
            fills the window.
    """
    window, trusted = options["window"], options["trust_remote_code"]
    state = partial(build_answerer, space.localizer, model.uri, text.uri, window, trusted)
    num_rows = sum(1 for _ in read_rows(space.local(text.uri)))
    starts = list(range(0, num_rows, ROWS_PER_UNIT))
    results = space.compute_units(score_unit, starts, state, group="text")
    nats = [value for result in results for value in json.loads(result)]
    (alone,) = space.compute_units(measure_alone, [window], state, group="alone", num_workers=1)
    measured = json.loads(alone)
    return HeldOut(
        nats=[value or 0.0 for value in nats],
        tokens=[int(value is not None) for value in nats],
        protocol=f"nats/row, mean of the answer's start and end; contexts cut to {window} tokens "
        f"with the question, {nats.count(None)} rows without an answer there not scored",
        probe=measured["probe"],
        prefill=measured["prefill"],
    )


def build_answerer(
    localize: Callable[[str], Path],
    model_uri: str,
    text_uri: str,
    window: int,
    trust_remote_code: bool,
) -> Answerer:
    folder = localize(model_uri)
    asked = read_questions(localize(text_uri), load_tokenizer(folder), window)
    return Answerer(load_model(folder, "auto", trust_remote_code), asked)


def read_questions(path: Path, tokenizer: Any, window: int) -> list[Asked]:
    """Read and encode all rows of a JSONL file. Raises: CorpusError: as `score_answers`."""
    asked = []
    for number, raw in enumerate(read_rows(path), start=1):
        try:
            row = make_row(raw, "evaluation", None, "question_answering")
            encoding = encode(row, tokenizer, "question_answering", window, pad=False)
            asked.append(Asked(dict(encoding), find_span(row, encoding)))
        except ValueError as error:
            raise CorpusError(f"{path}: row {number}: {error}") from None
    return asked


def answer(model: Any, asked: Asked) -> torch.Tensor:
    """Return the start and the end logits, [2, num_tokens] fp32 on the CPU."""
    inputs = {name: torch.tensor([v], device=model.device) for name, v in asked.inputs.items()}
    with torch.inference_mode():
        output = model(**inputs)
    return torch.cat([output.start_logits, output.end_logits]).float().cpu()


def score_unit(answerer: Answerer, start: int) -> bytes:
    """Return the nats of one unit's rows as a JSON list, null of a row that is not scored."""
    return json.dumps(
        [
            None
            if IGNORED in asked.span
            else F.cross_entropy(
                answer(answerer.model, asked).double(), torch.tensor(asked.span)
            ).item()
            for asked in answerer.asked[start : start + ROWS_PER_UNIT]
        ]
    ).encode()


def measure_alone(answerer: Answerer, window: int) -> bytes:
    """Time full batches and keep the probe's logits; return JSON {prefill, probe}."""
    model, probed = answerer.model, answerer.asked[:PROBE_ROWS]
    probe = {
        "ids": [asked.inputs["input_ids"] for asked in probed],
        "token_type_ids": [
            asked.inputs["token_type_ids"] for asked in probed if "token_type_ids" in asked.inputs
        ],
        "logits": [answer(model, asked).flatten().tolist() for asked in probed],
    }
    rows = answerer.asked[:SPEED_ROWS]
    ids = torch.tensor([token for asked in rows for token in asked.inputs["input_ids"]])
    return json.dumps({"prefill": measure_prefill(model, ids, window), "probe": probe}).encode()
