"""Self-Instruct: a model writes new cases of a task from a few that are given and its own.

Each round shows the model examples drawn from the seeds and from what it has written so far, and
asks for inputs; an input too much like one before is refused. A classification goes output-first:
a label is chosen, and then an input asked for it, so that the labels come out balanced. Otherwise
the input comes first, and its likeliest output is asked for.

Reference: Wang et al. 2022, Self-Instruct, arXiv 2212.10560, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.example_pool import Pool, read_examples
from tasks.corpus.generation import Completion, Prompt, generate, provenance
from tasks.corpus.novelty import NoveltyPool
from tasks.corpus.prompts import (
    FOLLOW,
    STOPS,
    Input,
    ask_input,
    ask_input_for,
    ask_output,
    find_label,
    parse_input,
    parse_output,
)
from tasks.corpus_options import Example, Task
from tasks.distill.blocks import derive_seed
from tasks.plugins import Uri

USES = ("generator",)


def read(
    context: CorpusContext,
    *,
    num_rows: Annotated[int, Field(gt=0)],
    seeds: Uri | None = None,
    order: Literal["auto", "input_first", "output_first"] = "auto",
    num_examples: Annotated[int, Field(ge=0)] = 8,
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.7,
    round_rows: Annotated[int, Field(gt=0)] = 64,
    max_rounds: Annotated[int, Field(gt=0)] = 100,
    max_tokens: Annotated[int, Field(gt=0)] = 256,
    temperature: Annotated[float, Field(ge=0)] = 1.0,
    licence: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield `num_rows` new cases, fewer where `max_rounds` do not bring them.

    Args:
        seeds: Rows with text and, where it is known, output; they add to the task's examples.
            Without a task their texts are instructions.
        order: auto is output_first for a classification, and input_first otherwise.
        num_examples: That a prompt shows.
        max_similarity: ROUGE-L from which on an input counts as said before.
        round_rows: Asked for before the next prompts show what came of it.
        max_tokens: Of an input, and of an output; what is cut off there is refused.
        temperature: Of inputs; an output is the likeliest.
        licence: Of what the model writes.

    Raises:
        ValueError: there is nothing to start from, or no label for output_first to choose.
        CorpusError: a seed has a label that is none of the task's.
    """
    task = context.task or FOLLOW
    if order == "output_first" and not task.labels:
        raise ValueError(
            "self_instruct: order: output_first begins with a label, and the task has none; "
            "expected task.kind: classification with labels, or order: input_first"
        )
    pool = Pool(task, [*task.examples, *(read_examples(context, seeds, task) if seeds else ())])
    if not pool.seeds and context.task is None:
        raise ValueError(
            "self_instruct: nothing to start from; give the recipe a task, or the source seeds"
        )
    novelty = NoveltyPool((flatten(e.text, e.text_pair) for e in pool.seeds), max_similarity)
    output_first = bool(task.labels) and order != "input_first"

    for number in range(max_rounds):
        missing = min(num_rows - len(pool.written), round_rows)
        if missing <= 0:
            return
        labels = pool.scarcest_labels(missing) if output_first else [None] * missing
        prompts = []
        for index, label in enumerate(labels):
            seed = derive_seed(context.seed, number, index)
            shown = pool.draw(num_examples, seed, solved=label is not None)
            text = ask_input(task, shown) if label is None else ask_input_for(task, shown, label)
            prompts.append(Prompt(text, seed, max_tokens, temperature, STOPS))
        completions = generate(context, prompts, f"inputs-{number:04d}")
        if not any(completion.num_prompt_tokens for completion in completions):
            break  # out of budget, or longer than the model's context: the next would be, too
        found = [
            (index, new)
            for index, completion in enumerate(completions)
            if (new := judge_input(context, completion, pool, novelty))
        ]
        outputs: dict[int, str | None]
        if output_first:
            outputs = {index: labels[index] for index, _ in found}
        else:
            outputs = answer(context, pool, found, number, num_examples, max_tokens)
        for index, new in found:
            if output := outputs[index]:
                pool.written.append(Example(**new._asdict(), output=output))
                row = new._asdict() | {"output": output}
                yield row | provenance(context, prompts[index], licence)
    if missing := num_rows - len(pool.written):
        context.refused["asked for, and not written in all rounds"] += missing


def judge_input(
    context: CorpusContext, completion: Completion, pool: Pool, novelty: NoveltyPool
) -> Input | None:
    """Return the input that a completion gives; where it is of no use, count why."""
    if completion.refused:
        return None
    new = parse_input(completion.text, pool.paired)
    if not completion.finished:
        context.refused["cut off at max_tokens"] += 1
    elif new is None:
        context.refused["without a second input" if pool.paired else "empty"] += 1
    elif not novelty.admit(flatten(*new)):
        context.refused["too much like a row before"] += 1
    else:
        return new
    return None


def flatten(text: str, text_pair: str | None) -> str:
    return text if text_pair is None else f"{text}\n{text_pair}"


def answer(
    context: CorpusContext,
    pool: Pool,
    found: list[tuple[int, Input]],
    number: int,
    num_examples: int,
    max_tokens: int,
) -> dict[int, str | None]:
    """Return the likeliest output of each input of a round; None, and counted, if of no use."""
    prompts = []
    for index, new in found:
        seed = derive_seed(context.seed, number, index, 1)
        shown = pool.draw(num_examples, seed, solved=True)
        text = ask_output(pool.task, shown, new)
        prompts.append(Prompt(text, seed, max_tokens, temperature=0.0, stop=STOPS))
    completions = generate(context, prompts, f"outputs-{number:04d}")
    outputs: dict[int, str | None] = {}
    for (index, _), completion in zip(found, completions, strict=True):
        outputs[index] = judge_output(context, completion, pool.task)
    return outputs


def judge_output(context: CorpusContext, completion: Completion, task: Task) -> str | None:
    if completion.refused:
        return None
    if task.labels:
        if label := find_label(completion.text, task.labels):
            return label
        context.refused["label outside the set"] += 1
    elif not completion.finished:
        context.refused["output cut off at max_tokens"] += 1
    elif output := parse_output(completion.text):
        return output
    else:
        context.refused["empty output"] += 1
    return None
