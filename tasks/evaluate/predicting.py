"""What a model says of labelled rows, by its head: a score for each label.

A classifier has them as its logits, a regression has one. A causal language model reads a prompt,
and its score for a label is the log-likelihood of what stands for that label after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from tasks.corpus.text import tokenize_row
from tasks.evaluate.labelled import LabelledRow

BATCH_ROWS = 16
PLACE = re.compile(r"\{text(_pair)?\}")


class RowScores(NamedTuple):
    """Of some rows."""

    scores: torch.Tensor
    """[num_rows, num_labels] fp64 on the CPU."""
    num_cut: int
    """Rows that were longer than the window."""


ScoreRows = Callable[[list[LabelledRow]], RowScores]


class Judged(NamedTuple):
    """What came of rows whose labels are known."""

    predicted: list[float]
    """The class of the highest score, of two equal ones the first; of a regression the score."""
    nats: list[float]
    """Cross-entropy of each row's label among the labels; of a regression the squared error."""
    num_cut: int


def judge_rows(score: ScoreRows, rows: list[LabelledRow], gold: list[float]) -> Judged:
    """Hold what a model says of rows against their labels."""
    scores, num_cut = score(rows)
    wanted = torch.tensor(gold, dtype=torch.float64)
    if scores.shape[1] == 1:
        predicted = scores[:, 0]
        nats = (predicted - wanted).square()
    else:
        predicted = scores.argmax(dim=1)
        nats = F.cross_entropy(scores, wanted.long(), reduction="none")
    return Judged(predicted.double().tolist(), nats.tolist(), num_cut)


def score_by_head(model: Any, tokenizer: Any, window: int, rows: list[LabelledRow]) -> RowScores:
    """Return a classifier's logits; rows are cut to `window` tokens."""
    inputs, num_cut = encode_rows(tokenizer, rows, window)
    padded = tokenizer.pad_token_id is not None and model.config.pad_token_id is not None
    size = BATCH_ROWS if padded else 1
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = {name: values[start : start + size] for name, values in inputs.items()}
            if padded:
                batch = tokenizer.pad(batch)
            tensors = {name: torch.tensor(v, device=model.device) for name, v in batch.items()}
            parts.append(model(**tensors).logits.double().cpu())
    return RowScores(torch.cat(parts), num_cut)


def encode_rows(
    tokenizer: Any, rows: list[LabelledRow], window: int
) -> tuple[dict[str, list[list[int]]], int]:
    """Return a classifier's inputs, not padded, and how many rows were cut to the window.

    The inputs are those that the tokenizer names: input_ids, attention_mask, token_type_ids.
    """
    pairs = [row.text_pair or "" for row in rows]
    encoded = tokenizer(
        [row.text for row in rows],
        pairs if any(pairs) else None,
        truncation=True,
        max_length=window,
        verbose=False,
    )
    num_cut = sum(bool(row.overflowing) for row in encoded.encodings or ())
    return dict(encoded), num_cut


def score_by_prompt(
    model: Any,
    tokenizer: Any,
    window: int,
    prompt: str,
    verbalizers: list[str],
    rows: list[LabelledRow],
) -> RowScores:
    """Return log p(verbalizer | prompt) for each label, summed over its tokens.

    The candidates of a row share a prompt, so the tokens with which all of them begin say nothing
    of which is likelier, and are left out: no tokenizer has to cut between prompt and verbalizer.
    A row that is too long loses tokens at its beginning.
    """
    scores, num_cut = [], 0
    with torch.inference_mode():
        for row in rows:
            asked = fill_in(prompt, row)
            said = [{"text": asked + verbalizer} for verbalizer in verbalizers]
            candidates = [tokenize_row(whole, tokenizer).ids for whole in said]
            longest = max(map(len, candidates))
            num_cut += longest > window
            candidates = [ids[max(0, longest - window) :] for ids in candidates]
            scores.append(score_candidates(model, candidates))
    return RowScores(torch.stack(scores), num_cut)


def fill_in(prompt: str, row: LabelledRow) -> str:
    """Put a row's texts into a prompt; braces in a text are left as they are."""
    texts = {"{text}": row.text, "{text_pair}": row.text_pair or ""}
    return PLACE.sub(lambda place: texts[place[0]], prompt)


def score_candidates(model: Any, candidates: list[list[int]]) -> torch.Tensor:
    """Return each candidate's log-likelihood after the tokens that all share, [K] fp64."""
    shared = 0
    while all(len(ids) > shared + 1 and ids[shared] == candidates[0][shared] for ids in candidates):
        shared += 1
    shared = max(shared, 1)
    width = max(map(len, candidates))
    # What pads stands behind everything that is scored: a causal model never sees it.
    padded = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in candidates])
    logits_KSV = model(input_ids=padded.to(model.device)).logits[:, shared - 1 : -1].float()
    nats = F.cross_entropy(
        logits_KSV.transpose(1, 2), padded[:, shared:].to(logits_KSV.device), reduction="none"
    )
    lengths = torch.tensor([len(ids) for ids in candidates])[:, None]
    counted = torch.arange(shared, width)[None] < lengths
    return -(nats.cpu().double() * counted).sum(dim=1)
