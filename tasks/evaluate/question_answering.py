"""Held-out nats/row of a model that finds answers in a text: of where the answer starts and ends.

Rows are those of SQuAD: `{question, context, answers: {text: [...], answer_start: [...]}}`; of
several answers the first counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from tasks.corpus.rows import read_rows
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


class Question(NamedTuple):
    question: str
    context: str
    start: int | None
    """Of the answer, in characters of the context; None where there is none in it."""
    stop: int | None


class Asked(NamedTuple):
    """One question as tokens."""

    inputs: dict[str, list[int]]
    """What the tokenizer names: input_ids, attention_mask, token_type_ids."""
    start: int
    """The answer's first token; 0, the class token, where the window holds no answer."""
    end: int
    """Its last."""


class Answerer(NamedTuple):
    """A worker's state."""

    model: Any
    asked: list[Asked]


def score_answers(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef
) -> HeldOut:
    """Score a model on questions with answers.

    Raises:
        CorpusError: a row is no question.
    """
    window, trusted = options["window"], options["trust_remote_code"]
    state = partial(build_answerer, space.localizer, model.uri, text.uri, window, trusted)
    starts = list(range(0, len(read_questions(space.local(text.uri))), ROWS_PER_UNIT))
    results = space.compute_units(score_unit, starts, state, group="text")
    nats = [value for result in results for value in json.loads(result)]
    (alone,) = space.compute_units(measure_alone, [window], state, group="alone", num_workers=1)
    measured = json.loads(alone)
    return HeldOut(
        nats=nats,
        tokens=[1] * len(nats),
        protocol=f"nats/row, mean of the answer's start and end; contexts cut to {window} tokens "
        "with the question, the class token where the answer is not in them",
        probe=measured["probe"],
        prefill=measured["prefill"],
    )


def read_questions(path: Path) -> list[Question]:
    """Raises: CorpusError: there is no row, or one lacks question, context or answers."""
    questions = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            question, context, answers = row["text"], row["text_pair"], row["answers"]
            texts, starts = answers["text"], answers["answer_start"]
            answer = (starts[0], starts[0] + len(texts[0])) if texts else (None, None)
        except (KeyError, TypeError, IndexError) as error:
            raise CorpusError(
                f"{path}: row {number}: expected question, context and answers: "
                f"{{text: [...], answer_start: [...]}} ({error!r})"
            ) from None
        questions.append(Question(question, context, *answer))
    if not questions:
        raise CorpusError(f"{path} has no rows")
    return questions


def build_answerer(
    localize: Callable[[str], Path],
    model_uri: str,
    text_uri: str,
    window: int,
    trust_remote_code: bool,
) -> Answerer:
    folder = localize(model_uri)
    tokenizer = load_tokenizer(folder)
    asked = [encode(tokenizer, q, window) for q in read_questions(localize(text_uri))]
    return Answerer(load_model(folder, "auto", trust_remote_code), asked)


def encode(tokenizer: Any, question: Question, window: int) -> Asked:
    """Tokenise a question and its context, which is cut, and find the answer's tokens."""
    encoded = tokenizer(
        question.question,
        question.context,
        truncation="only_second",
        max_length=window,
        return_offsets_mapping=True,
        verbose=False,
    )
    offsets, parts = encoded.pop("offset_mapping"), encoded.sequence_ids()
    start = end = 0
    if question.start is not None and question.stop is not None:
        inside = [
            place
            for place, (first, last) in enumerate(offsets)
            if parts[place] == 1 and first < question.stop and last > question.start
        ]
        if inside and offsets[inside[-1]][1] >= question.stop:
            start, end = inside[0], inside[-1]
    return Asked(dict(encoded), start, end)


def answer(model: Any, asked: Asked) -> torch.Tensor:
    """Return the start and the end logits, [2, num_tokens] fp32 on the CPU."""
    inputs = {name: torch.tensor([v], device=model.device) for name, v in asked.inputs.items()}
    with torch.inference_mode():
        output = model(**inputs)
    return torch.cat([output.start_logits, output.end_logits]).float().cpu()


def score_unit(answerer: Answerer, start: int) -> bytes:
    """Return the nats of one unit's rows as a JSON list."""
    return json.dumps(
        [
            F.cross_entropy(
                answer(answerer.model, asked).double(), torch.tensor([asked.start, asked.end])
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
