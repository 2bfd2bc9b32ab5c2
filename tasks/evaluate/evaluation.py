"""The evaluate stage: held-out loss, tasks, and speed of one model, by its head."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.digests import digest_folder
from tasks.errors import CorpusError
from tasks.evaluate.classification import score_held_out_rows
from tasks.evaluate.held_out import HeldOut
from tasks.evaluate.latency import measure_latencies
from tasks.evaluate.metrics import average_tasks
from tasks.evaluate.perplexity import score_text
from tasks.evaluate.question_answering import score_answers
from tasks.evaluate.speed import SPEED_BATCH, SPEED_REPEATS
from tasks.evaluate.task_scores import score_tasks
from tasks.models.model_kind import HeadKind, head_kind
from tasks.quality_records import Metrics
from tasks.records import DataRef, ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

SCORERS: dict[HeadKind, Callable[[StageSpace, dict[str, Any], ModelRef, TextRef], HeldOut]] = {
    "causal_lm": score_text,
    "masked_lm": partial(score_text, masked=True),
    "sequence_classification": score_held_out_rows,
    "question_answering": score_answers,
}


def evaluate_model(
    space: StageSpace,
    options: dict[str, Any],
    *,
    model: ModelRef,
    text: TextRef,
    **data: TextRef | DataRef,
) -> Metrics:
    """Score a model on the held-out text and on the recipe's tasks, and time it.

    Writes `documents.json`, summed nats and tokens per document; `probe.json`, a few inputs and
    what the model makes of them; and `tasks/<name>.json`, what is right and what the model said
    of each item.

    Args:
        data: What the tasks read, by `task <name>`.

    Raises:
        ValueError: the model cannot do a task.
        CorpusError: the text, or a task's file, has nothing that can be scored.
    """
    held_out = SCORERS[head_kind(model.architecture)](space, options, model, text)
    if not any(held_out.tokens):
        raise CorpusError(
            f"{text.uri}: nothing can be scored in a window of {options['window']} tokens: no row "
            "has its answer inside it, or in a chat an assistant's turn",
            "raise the window, or give rows whose answers come earlier",
        )
    read = {name.removeprefix("task "): found for name, found in data.items()}
    tasks = score_tasks(space, options, model, read)
    latency = measure_latencies(space, options, model, text) if options["latency"] else None

    documents = {"nats": held_out.nats, "tokens": held_out.tokens}
    (space.out / "documents.json").write_text(json.dumps(documents))
    (space.out / "probe.json").write_text(json.dumps(held_out.probe))
    mean, prefill = sum(held_out.nats) / sum(held_out.tokens), held_out.prefill
    place = f"{prefill['dtype']} on {prefill['device']}"
    return Metrics(
        nats_per_token=mean,
        perplexity=math.exp(min(mean, 700.0)),
        num_tokens=sum(held_out.tokens),
        num_documents=len(held_out.nats),
        tokens_per_s=prefill["tokens_per_s"],
        protocol=f"{held_out.protocol}, text {text.digest[:12]}, {place}",
        speed_protocol=(
            f"prefill of {SPEED_BATCH} x {options['window']} tokens, median of {SPEED_REPEATS}, "
            f"{place}, {prefill['threads']} thread(s)"
        ),
        documents_uri=space.output_uri("documents.json"),
        digest=digest_folder(space.out),
        tasks=tasks,
        task_average=average_tasks({n: t.scores for n, t in tasks.items()}) if tasks else None,
        latency=latency,
    )
