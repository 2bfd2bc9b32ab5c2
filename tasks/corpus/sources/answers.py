"""Sequence-level knowledge distillation: what the teacher answers to given inputs.

The student learns the decoded answer as if it were the truth: the mode of the teacher's
distribution where that is searched for with beams, a sample of it where it is sampled.

Reference: Kim & Rush 2016, Sequence-Level Knowledge Distillation, arXiv 1606.07947, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Prompt, complete_each, provenance
from tasks.corpus.prompts import find_label
from tasks.corpus.seeds import read_seeds
from tasks.corpus.task_text import render_prompt
from tasks.distill.blocks import derive_seed
from tasks.plugins import Uri

USES = ("generator",)

STOPS = ("\nInput:", "\nOutput:")
"""Where a model that does not chat begins another case; the student is asked in this form, too."""


def read(
    context: CorpusContext,
    *,
    inputs: Uri,
    max_inputs: int | None = None,
    decoding: Literal["greedy", "sampled", "beam"] = "greedy",
    num_beams: Annotated[int, Field(gt=1)] = 4,
    max_tokens: Annotated[int, Field(gt=0)] = 256,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield each input with its answer; an answer that the inputs' file has is not looked at.

    Args:
        inputs: Rows with text, and text_pair where the task is about two.
        decoding: beam needs the generator teacher.
        num_beams: With decoding: beam.
        temperature: With decoding: sampled.
        licence: Of the rows; None keeps each input's own.
    """
    found = islice(read_seeds(context, inputs), max_inputs)
    asked = (
        (
            row,
            Prompt(
                render_prompt(context.task, row["text"], row.get("text_pair")),
                derive_seed(context.seed, index),
                max_tokens,
                temperature if decoding == "sampled" else 0.0,
                STOPS,
                num_beams=num_beams if decoding == "beam" else 1,
            ),
        )
        for index, row in enumerate(found)
    )
    labels = context.task.labels if context.task else []
    for row, prompt, completion in complete_each(context, asked):
        output = find_label(completion.text, labels) if labels else completion.text.strip()
        if not labels and not completion.finished:
            context.refused["cut off at max_tokens"] += 1
        elif not output:
            context.refused["label outside the set" if labels else "empty"] += 1
        else:
            about = provenance(context, prompt, licence or row.get("licence"))
            kept = {"text": row["text"], "text_pair": row.get("text_pair"), "output": output}
            yield kept | about
