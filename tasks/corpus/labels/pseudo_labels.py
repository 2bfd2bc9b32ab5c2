"""The teacher's own labels, where it is sure of them.

    p(label | input) = softmax over the task's labels of ln p(label | prompt)

The prompt and the label are tokenised as the student will read them. Reference: Lee 2013,
"Pseudo-label"; labels scored by likelihood as Brown et al. 2020, arXiv 2005.14165, section 2.4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.rows import Row
from tasks.corpus.scoring import Scorer, scorer_state, token_nats
from tasks.corpus.shards import Rows, Shard, read_shard
from tasks.corpus.task_text import tokenize
from tasks.corpus_options import Task

USES = ("teacher",)


class Slice(NamedTuple):
    """One unit of work: some rows of a shard."""

    shard: Shard
    start: int
    stop: int


class Scores(NamedTuple):
    """What the teacher thinks of a row that has no output yet."""

    nats: list[float]
    """-ln p of each label; empty where the row does not fit `max_tokens`."""
    num_tokens: int


def label(
    context: CorpusContext,
    rows: Rows,
    *,
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.8,
    length_normalized: bool = False,
    max_tokens: Annotated[int, Field(gt=1)] = 512,
    batch_rows: Annotated[int, Field(gt=0)] = 64,
) -> Iterator[str | None]:
    """Yield the likeliest label of each row; None below the cut, for a chat, or where there
    is an output.

    Args:
        length_normalized: Mean over a label's tokens instead of their sum, so that a label is not
            less likely for being long.
        max_tokens: Of prompt and label; a row that is longer is counted as refused.
        batch_rows: Of one unit of work; a kill costs at most one for each process killed.

    Raises:
        ValueError: the task is no classification.
    """
    task = context.task
    if task is None or task.kind != "classification":
        raise ValueError("pseudo_labels gives labels: expected task.kind: classification")
    units = [
        Slice(shard, start, min(start + batch_rows, shard.num_rows))
        for shard in rows.shards
        for start in range(0, shard.num_rows, batch_rows)
    ]
    work = partial(score_rows, context.space.localizer, task, max_tokens, length_normalized)
    for data in context.space.stream_units(work, units, scorer_state(context), context.name):
        for scored in json.loads(data):
            yield choose(scored and Scores(*scored), context, task, min_confidence)


def choose(
    scored: Scores | None, context: CorpusContext, task: Task, min_confidence: float
) -> str | None:
    if scored is None:
        return None
    if not scored.nats:
        context.refused["pseudo_labels: longer than max_tokens"] += 1
        return None
    context.spent["requests"] += 1
    context.spent["prompt_tokens"] += scored.num_tokens
    confidence, index = torch.tensor(scored.nats).neg().softmax(0).max(0)
    return task.labels[int(index)] if confidence >= min_confidence else None


def score_rows(
    localize: Callable[[str], Path],
    task: Task,
    max_tokens: int,
    length_normalized: bool,
    scorer: Scorer,
    unit: Slice,
) -> bytes:
    rows = read_shard(localize(unit.shard.uri))[unit.start : unit.stop]
    scored = [
        None
        if row["output"] is not None or row["chat"]
        else score(row, scorer, task, max_tokens, length_normalized)
        for row in rows
    ]
    return json.dumps(scored).encode()


def score(row: Row, scorer: Scorer, task: Task, max_tokens: int, length_normalized: bool) -> Scores:
    """Score all labels of one row at once; the end of the text is not part of a label."""
    sequences, first = [], max_tokens
    for answer in task.labels:
        document = tokenize(row | {"output": answer}, scorer.tokenizer, task)
        ends = document.ids[-1] == scorer.tokenizer.eos_token_id
        sequences.append(document.ids[:-1] if ends else document.ids)
        first = min(first, document.loss_mask.index(1))
    if max(map(len, sequences)) > max_tokens:
        return Scores([], 0)
    nats = token_nats(scorer, sequences, first)
    sums = [float(each.mean() if length_normalized else each.sum()) for each in nats]
    return Scores(sums, sum(map(len, sequences)))
